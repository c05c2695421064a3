"""One engine as the scheduler sees it: its queue, its rows and pages, and the step loop.

The loop, per step: decode rows go on -> prompts being computed get their next chunk -> waiting requests are
admitted -> the plan is sent, up to `pipeline_depth` of them ahead of the answers -> answers are applied in order.
Nothing here touches the bus; `service.py` carries plans out and results in.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from services.scheduler import admission, forced_runs, results
from services.scheduler.aside import Aside
from services.scheduler.config import SchedulerConfig
from services.scheduler.kv_events import KvEventLog
from services.scheduler.lost_steps import LostSteps
from services.scheduler.mask_bank import MaskBank
from services.scheduler.media_bank import MediaBank
from services.scheduler.outbox import Outbox
from services.scheduler.plan_draft import NONE, Extend, InFlight, PlanDraft
from services.scheduler.pool import Pool
from services.scheduler.request import Req
from services.scheduler.stages import Stages
from services.scheduler.totals import Totals
from services.scheduler.waiting_queue import WaitingQueue
from shared import messages as m
from shared.errors import RhizomeError
from shared.messages.generation import ABORTED

I32 = npt.NDArray[np.int32]
DEPTH = 2
LONG_STEP_MS = 1.6
"""From here on one plan ahead hides the way of an answer and of the next plan (measured: docs/benchmarks.md)."""
STEP_WEIGHT = 0.1
"""Of the newest step in the mean."""


class Engine:
    """One session with one engine. A fault ends the session; `drop` hands its requests back.

    Invariants: `pool.check()` holds between calls; at most `pipeline_depth` plans are unanswered; a row and its
    private pages are released only when no unanswered plan touches it.
    """

    def __init__(
        self, info: m.EngineInfo, session: str, config: SchedulerConfig, outbox: Outbox, totals: Totals,
        stages: Stages, aside: Aside, on_end: Callable[[Req], None], clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.info = info
        self.session = session
        self.config = config
        self.outbox = outbox
        self.totals = totals
        self.stages = stages
        self.aside = aside
        self.clock = clock
        self.stop_lookup = np.zeros(info.vocab_size, np.bool_)
        """[V] token ids that are a stop id of some request so far."""
        self._on_end = on_end
        self.kv_log = KvEventLog(info.engine_id, info.page_size) if config.enable_kv_events else None
        self.pool = Pool(
            info.num_pages, info.page_size, info.max_rows, info.context_length,
            share_prefixes=not config.disable_radix_cache, observer=self.kv_log,
        )  # fmt: skip
        self.mask_bank = MaskBank(info.mask_slots, info.vocab_size)
        self.media = MediaBank(info.engine_id, session, info.tp_size, info.media_bytes, clock)
        self.queue = WaitingQueue(config.schedule_policy, config.starvation_limit_s)
        self.prefilling: list[Req] = []
        """Admitted, prompt not completely dispatched; in order of admission."""
        self.budget = admission.AdmissionBudget(config.schedule_conservativeness)
        self.in_flight: deque[InFlight] = deque()
        self._lost_steps = LostSteps()
        self._step_ms = LONG_STEP_MS
        self.heard_s = self.answered_s = clock()
        self.seq = 0
        self._last_decode = NONE
        self._admissions = 0

    # ---- requests in and out

    @property
    def capacity_tokens(self) -> int:
        """Longest prompt + output that fits when the engine runs nothing else."""
        return min(self.info.num_pages * self.info.page_size, self.info.context_length)

    @property
    def load_tokens(self) -> int:
        """Tokens waiting or running; what the router balances."""
        rows = self.pool.rows
        return int(rows.known_len[~rows.done].sum()) + self.queue.tokens

    @property
    def depth(self) -> int:
        """Plans that may be unanswered. One more where a step is so short that an answer's way takes as long."""
        return self.config.pipeline_depth or (DEPTH if self._step_ms >= LONG_STEP_MS else DEPTH + 1)

    def stepped(self, timing: m.StepTiming) -> None:
        """The device's time of another step is known."""
        device_ms = timing.prepare_ms + timing.forward_ms + timing.sample_ms
        if device_ms > 0:
            self._step_ms += STEP_WEIGHT * (device_ms - self._step_ms)

    def heard(self, info: m.EngineInfo) -> str | None:
        """The engine is alive; returns why the session cannot go on all the same."""
        self.info = info
        self.heard_s = self.clock()
        oldest = self.in_flight[0] if self.in_flight else None
        return self._lost_steps.judge(info, self.session, oldest, self.heard_s)

    def push(self, req: Req) -> None:
        """Queue a request; one that has run before goes ahead of the others."""
        self.stop_lookup[[i for i in req.stop_ids if i < len(self.stop_lookup)]] = True
        if req.cached_tokens < 0:
            self.queue.push(req)
        else:
            self.queue.push_first(req)

    def end(self, req: Req) -> None:
        """The request has had its last word. Its row is freed as soon as no plan touches it."""
        req.done = True
        self._unpin(req)
        self._on_end(req)
        self.queue.remove(req)
        if req in self.prefilling:
            self.prefilling.remove(req)
        if req.row >= 0:
            self.pool.rows.decoding[req.row] = False
            self.pool.rows.done[req.row] = True

    def abort(self, req: Req, *, silent: bool) -> None:
        """End a request now, with an ABORTED entry unless its tokenizer needs none."""
        if not silent:
            self.outbox.end(req, ABORTED, total=self.generated(req))
        self._end_now(req)

    def fail(self, req: Req, fault: RhizomeError) -> None:
        """End a request with an error."""
        self.outbox.failed(req, fault)
        self._end_now(req)

    def generated(self, req: Req) -> int:
        """Tokens that the request has got so far."""
        return int(self.pool.rows.out_known[req.row]) if req.row >= 0 else req.num_generated

    def drop(self, *, failed: bool) -> list[Req]:
        """The session is over: every request that has not ended, with the tokens it has, ready to be queued again."""
        running = self.pool.rows.running()
        for req in running:
            self.pool.rows.detach(req)
            req.node = None
            req.pinned = ()
            req.queued_since_s = self.clock()
            req.losses += failed
        return running + self.queue.take_all()

    # ---- the step loop

    def build(self) -> m.StepPlan | None:
        """[walk 5] The next plan, or None: nothing to do, or enough plans under way.

        One without rows only has ranks drop images, to make room for others.
        """
        if len(self.in_flight) >= self.depth:
            return None
        draft = PlanDraft()
        now = self.clock()
        with self.stages.measure("plan"):
            room = self.config.chunked_prefill_size or self.info.prefill_tokens
            room = room if room > 0 else 1 << 30
            retracted = self._decode(draft, room)
            taken = len(draft.decode) + sum(extend.count for extend in draft.extends)
            room = self._continue_prefills(draft, max(room - taken, 1))
        full = retracted and self.pool.rows.used_rows > 0
        if not full and room > 0 and len(self.queue):
            with self.stages.measure("admit"):
                admission.admit(self, draft, room, now)
        if draft.empty and not self.media.crowded:
            return None
        with self.stages.measure("plan"):
            plan, record = draft.finish(self.session, self.seq, self.pool.rows, self.media, self._last_decode, now)
            self.pool.rows.in_flight[record.touched] += 1
            for extend in draft.extends:
                if extend.req.pinned and extend.ends_prompt:
                    self._unpin(extend.req)
                if not extend.req.done:
                    self.pool.share_computed(extend.req, extend.start + extend.count)
            self._last_decode = draft.decode
            self.in_flight.append(record)
            self.seq += 1
        self.stages.step_sent()
        return plan

    def apply(self, result: m.StepResult) -> None:
        """[walk 11] Apply the answer to the oldest plan.

        Raises:
            WireError: it is not the answer to the oldest plan; the session cannot go on.
        """
        with self.stages.measure("apply"):
            results.apply(self, result)

    def masks(self) -> list[m.StepMasks]:
        """What the constrained rows of the plans under way may sample, as far as it is known now."""
        with self.stages.measure("masks"):
            return [msg for record in self.in_flight for msg in forced_runs.masks(self, record)]

    def extend(self, draft: PlanDraft, req: Req, room: int) -> int:
        """Put the next chunk of a prompt into the plan; returns its tokens."""
        rows, row = self.pool.rows, req.row
        start, end = int(rows.disp_len[row]), int(rows.prefill_len[row])
        count = min(room, end - start)
        last = start + count == end
        sample = last and rows.out_sent[row] < rows.max_new[row]
        draft.extends.append(Extend(req, row, start, count, bool(sample), last, req.logprob_start))
        rows.disp_len[row] += count
        if last:
            rows.out_sent[row] += int(sample)
            rows.decoding[row] = True
            rows.waiting[row] = rows.slow[row]
        return count

    def retract(self, req: Req) -> None:
        """Send a running request back to the queue, at once or when the last plan that touches it is answered."""
        self.totals.retractions += 1
        self.pool.rows.decoding[req.row] = False
        if req in self.prefilling:
            self.prefilling.remove(req)
        req.retracting = True
        self._unpin(req)
        self.release_if_idle(req.row)

    def release_if_idle(self, row: int) -> None:
        """Free the row of an ended or retracted request once no unanswered plan touches it."""
        req = self.pool.rows.reqs[row]
        if req is None or self.pool.rows.in_flight[row] or not (req.done or req.retracting):
            return
        self.pool.release(req)
        if not req.done:
            req.queued_since_s = self.clock()
            self.queue.push_first(req)

    def admitted(self, req: Req) -> int:
        """Next number in the order of admission."""
        self._admissions += 1
        return self._admissions

    def stats(self) -> m.EngineStats:
        pool, rows = self.pool, self.pool.rows
        return m.EngineStats(
            engine_id=self.info.engine_id, name=self.info.name, state=self.info.state, device=self.info.device,
            tp_size=self.info.tp_size, page_size=pool.page_size, total_pages=pool.allocator.num_pages,
            free_pages=pool.allocator.free_pages, evictable_pages=pool.cache.evictable_pages,
            protected_pages=pool.cache.protected_pages, private_pages=pool.private_pages,
            running_reqs=rows.used_rows, max_rows=rows.max_rows, in_flight_steps=len(self.in_flight), steps=self.seq,
        )  # fmt: skip

    def _decode(self, draft: PlanDraft, room: int) -> bool:
        """Let every decoding row take a step, retracting the latest ones if pages run out; True if any was."""
        rows, size = self.pool.rows, self.pool.page_size
        candidates = forced_runs.take(self, draft, rows.decode_candidates(), room)
        if len(candidates) == 0:
            return False
        growing = candidates[rows.disp_len[candidates] == rows.num_pages[candidates] * size]
        retracted = False
        if len(growing) > self.pool.available_pages:
            candidates, growing = self._retract_until_it_fits(candidates, growing)
            retracted = True
        if len(growing):
            pages = self.pool.alloc(len(growing))
            at = rows.num_pages[growing]
            rows.page_table[growing, at] = pages
            rows.private[growing, at] = True
            rows.num_pages[growing] += 1
            draft.add_pages(growing, pages)
        rows.disp_len[candidates] += 1
        rows.out_sent[candidates] += 1
        rows.waiting[candidates] = rows.slow[candidates]
        draft.decode = candidates
        return retracted

    def _retract_until_it_fits(self, candidates: I32, growing: I32) -> tuple[I32, I32]:
        """Retract the latest admitted requests until the others can go on, at once or when leaving rows are free.

        The oldest always stays, unless it is alone: what it lacks are then its own copies of pages that the cache
        has too, and it starts again from the cache.
        """
        rows, pool = self.pool.rows, self.pool
        by_age = sorted((r for r in rows.running() if not r.retracting), key=lambda r: r.admitted)
        coming = sum(len(rows.private_pages(row)) for row in rows.leaving())
        while len(growing) > pool.available_pages + coming and (len(by_age) > 1 or rows.used_rows == 1):
            victim = by_age.pop()
            row, pages = victim.row, len(rows.private_pages(victim.row))
            self.retract(victim)
            if victim.retracting:  # an unanswered plan touches it still
                coming += pages
            candidates, growing = candidates[candidates != row], growing[growing != row]
        self.budget.after_retraction(rows)
        if len(growing) > pool.available_pages:
            candidates, growing = np.setdiff1d(candidates, growing).astype(np.int32), NONE
        return candidates, growing

    def _continue_prefills(self, draft: PlanDraft, room: int) -> int:
        """Next chunks of prompts under way, oldest first; returns what is left of the step's budget."""
        for req in list(self.prefilling):
            if room <= 0:
                break
            room -= self.extend(draft, req, room)
            if self.pool.rows.decoding[req.row]:
                self.prefilling.remove(req)
        return room

    def _unpin(self, req: Req) -> None:
        self.media.unpin(req.pinned)
        req.pinned = ()

    def _end_now(self, req: Req) -> None:
        row = req.row
        self.totals.aborted += 1
        self.end(req)
        if row >= 0:
            self.release_if_idle(row)

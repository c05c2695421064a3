"""All engines of this scheduler, and every request between its arrival and its last token.

Plain synchronous code: `service.py` calls it with messages and carries away what `outbox` and `plans` hold. State is
soft: everything here can be rebuilt from the requests that the tokenizers and gateways still hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from services.scheduler import router
from services.scheduler.aside import Aside
from services.scheduler.config import SchedulerConfig
from services.scheduler.constraint import CONTEXT_TOKENS, Constraint
from services.scheduler.engine import Engine
from services.scheduler.grammar import Grammar
from services.scheduler.media_names import MediaNames
from services.scheduler.outbox import Outbox
from services.scheduler.prompt_media import words_behind_media
from services.scheduler.request import Req
from services.scheduler.stages import Stages
from services.scheduler.totals import Totals
from shared import messages as m
from shared.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RhizomeError,
    Unavailable,
    WireError,
)
from shared.ledgers import LedgerRounds
from shared.log import Log

MAX_LOSSES = 3
"""Sessions a request may lose before it is taken for their cause."""


class Scheduler:
    """Lives as long as the process; owned by its event loop."""

    def __init__(
        self, scheduler_id: str, config: SchedulerConfig, log: Log, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.id = scheduler_id
        self.config = config
        self.log = log
        self.clock = clock
        self.outbox = Outbox(scheduler_id)
        self.totals = Totals()
        self.stages = Stages()
        self._media_names = MediaNames()
        self.aside = Aside()
        self.engines: dict[str, Engine] = {}  # by engine id
        self.unrouted: list[Req] = []
        """Requests that came while no engine was ready."""
        self._compiling = 0
        self._reqs: dict[tuple[str, int], tuple[Req, Engine | None]] = {}
        self._ledgers = LedgerRounds(clock)

    # ---- requests

    @property
    def queue_reqs(self) -> int:
        return self._compiling + len(self.unrouted) + sum(len(e.queue) for e in self.engines.values())

    @property
    def running_reqs(self) -> int:
        return sum(len(e.pool.rows.running()) for e in self.engines.values())

    @property
    def idle(self) -> bool:
        """No request is left."""
        return not self._reqs

    def submit(self, msg: m.TokenizedRequest) -> tuple[Req, m.Queued]:
        """[walk 3] Queue a request. One with a grammar waits until it is told that this is compiled, or that it is not.

        Raises:
            InvalidRequest: the prompt is empty.
            Overloaded: the queue is full.
            ContextLengthExceeded: the prompt fits no engine.
        """
        if len(msg.input_ids) == 0:
            raise InvalidRequest("the prompt has no tokens: give at least one")
        if self.queue_reqs >= self.config.max_queued_requests:
            raise Overloaded(f"{self.queue_reqs} requests are waiting: try again later or raise --max-queued-requests")
        req = Req.from_message(msg, self.clock(), self._media_names.key_ids(msg.input_ids, msg.media or ()))
        self._fit(req)
        if msg.media and self.engines and not any(e.info.media_bytes for e in self.engines.values()):
            raise InvalidRequest(
                "the engines' model takes text only: send the request without images", param="messages"
            )
        self.totals.requests += 1
        self._reqs[(req.tokenizer_id, req.handle)] = (req, None)
        self._ledgers.owe(req.tokenizer_id)
        if req.grammar is None:
            self._route(req)
        else:
            self._compiling += 1
        return req, m.Queued(scheduler_id=self.id, ledger=self._ledgers.number)

    def compiled(self, req: Req, outcome: Grammar | RhizomeError) -> None:
        """A waiting request's grammar is ready, or the reason why it cannot be; ended requests are left alone."""
        if req.done:
            self._compiling -= 1
        elif isinstance(outcome, RhizomeError):
            self._compiling -= 1
            self._fail(req, None, outcome)
        else:
            assert req.grammar is not None
            jump = req.grammar.jump_forward and not self.config.disable_jump_forward
            constraint = req.constraint = Constraint(outcome, req.eos_ids, jump_forward=jump)
            if constraint.slow:  # its first mask is made before it is in anybody's step
                context, most = words_behind_media(req.ids[-CONTEXT_TOKENS:]).tolist(), req.max_new_tokens - 1
                self.aside.start(
                    lambda: constraint.catch_up(context, most, req.stop_ids), lambda: self._constrained(req)
                )
            else:
                self._constrained(req)

    def abort(self, msg: m.AbortHandles) -> None:
        """End requests of a tokenizer; unknown handles have ended already."""
        for handle in msg.handles:
            self._abort((msg.tokenizer_id, handle), silent=msg.silent)

    def tokenizer_lost(self, tokenizer_id: str) -> None:
        """Nobody can receive these requests' tokens any more."""
        for key in [k for k in self._reqs if k[0] == tokenizer_id]:
            self._abort(key, silent=True)

    def flush(self) -> m.Flushed:
        """Drop every cached page that no running request holds."""
        released = held = 0
        for engine in self.engines.values():
            pages = engine.pool.cache.clear_unlocked()
            engine.pool.allocator.free(pages)
            released += len(pages)
            held += engine.pool.cache.protected_pages + engine.pool.private_pages
        return m.Flushed(released_pages=released, held_pages=held)

    # ---- engines

    def open(self, info: m.EngineInfo, session: str) -> None:
        """Begin a session with an engine, in place of an older one with the same name."""
        for old in [e for e in self.engines.values() if e.info.name == info.name]:
            self.close(old, "replaced by a new session")
        engine = Engine(
            info, session, self.config, self.outbox, self.totals, self.stages, self.aside, self._ended, self.clock
        )  # fmt: skip
        self.engines[info.engine_id] = engine
        self.log.info("engine joined", engine=info.engine_id, pages=info.num_pages, page_size=info.page_size)
        waiting, self.unrouted = self.unrouted, []
        for other in self.engines.values():
            if other is not engine:
                waiting += other.queue.take_all()
        for req in sorted(waiting, key=lambda r: r.arrived_s):
            self._route(req)

    def close(self, engine: Engine, reason: str, *, failed: bool = True) -> None:
        """End a session: its requests are queued again with the tokens they have."""
        if self.engines.get(engine.info.engine_id) is not engine:
            return
        del self.engines[engine.info.engine_id]
        dropped = engine.drop(failed=failed)
        self.log.warning("engine left", engine=engine.info.engine_id, reason=reason, requests=len(dropped))
        for req in dropped:
            if req.losses > MAX_LOSSES:
                fault = RhizomeError(f"the request was running on {req.losses} engines that failed: not tried again")
                self.outbox.failed(req, fault)
                self._ended(req)
            else:
                self._route(req)

    def heard(self, info: m.EngineInfo) -> None:
        """A known engine is alive; one that drains, or whose session lost a message, gives its requests back."""
        engine = self.engines[info.engine_id]
        lost = engine.heard(info)
        if info.state == "draining":
            self.close(engine, "draining", failed=False)
        elif lost is not None:
            self.close(engine, lost)

    def engine_left(self, bye: m.Goodbye) -> None:
        """A worker process is gone; an engine has the id of its first rank."""
        for engine in list(self.engines.values()):
            if bye.id == engine.info.engine_id or (not bye.id and bye.name == engine.info.name):
                self.close(engine, bye.reason or "worker gone")

    def by_session(self, session: str) -> Engine | None:
        return next((e for e in self.engines.values() if e.session == session), None)

    def apply(self, result: m.StepResult) -> None:
        """An answer from a worker; one of a session that has ended is ignored.

        Raises:
            WireError: out of sequence; the session was closed.
        """
        engine = self.by_session(result.session)
        if engine is None:
            return
        engine.heard_s = self.clock()
        try:
            engine.apply(result)
        except WireError as fault:
            self.close(engine, fault.message)
            raise

    def plans(self) -> Iterator[tuple[str, m.StepPlan]]:
        """Every plan that can be sent now, with its engine's id."""
        self.aside.finish()
        for engine in self.engines.values():
            while (plan := engine.build()) is not None:
                yield engine.info.engine_id, plan

    def masks(self) -> Iterator[tuple[str, m.StepMasks]]:
        """The masks of constrained rows that have become known, with their engine's id."""
        for engine in list(self.engines.values()):
            for masks in engine.masks():
                yield engine.info.engine_id, masks

    def stagings(self) -> Iterator[tuple[str, m.StageMedia]]:
        """The images and videos that engines should have at hand, with the engine's id."""
        for engine in self.engines.values():
            ask = engine.media.take()
            if ask is not None:
                yield engine.info.engine_id, ask

    def staged(self, answer: m.MediaStaged) -> None:
        """A worker rank has images and videos at hand, or cannot have them."""
        engine = self.by_session(answer.session)
        if engine is not None:
            engine.media.staged(answer)

    def tick(self, engine_timeout_s: float) -> None:
        """Once a second: deadlines, queue timeouts, engines that fell silent, ledgers."""
        now = self.clock()
        for engine in list(self.engines.values()):
            if now - engine.heard_s > engine_timeout_s:
                self.close(engine, f"silent for {engine_timeout_s:g} s")
            elif engine.in_flight and now - engine.in_flight[0].sent_s > self.config.step_timeout_s:
                self.close(engine, f"a step was not answered within {self.config.step_timeout_s:g} s")
        for req, engine_of in list(self._reqs.values()):
            waiting = req.row < 0
            if now > req.deadline_s:
                self._fail(req, engine_of, DeadlineExceeded("the request's deadline has passed"))
            elif waiting and now - req.queued_since_s > self.config.queue_timeout_s:
                self._fail(req, engine_of, self._waited_too_long())
        self._tell_all()

    def info(self) -> m.SchedulerInfo:
        t = self.totals
        return m.SchedulerInfo(
            scheduler_id=self.id, queue_reqs=self.queue_reqs, running_reqs=self.running_reqs,
            engines=[e.stats() for e in self.engines.values()], requests_total=t.requests,
            retractions_total=t.retractions, prompt_tokens_total=t.prompt_tokens, cached_tokens_total=t.cached_tokens,
            generation_tokens_total=t.generation_tokens, step_ms=self.stages.mean_ms(),
        )  # fmt: skip

    def _constrained(self, req: Req) -> None:
        """The request can be queued, if it is still wanted."""
        self._compiling -= 1
        if not req.done:
            self._route(req)

    def _tell_all(self) -> None:
        """If it is time, tell each tokenizer all its requests: what they miss by then was lost."""
        told: dict[str, list[tuple[int, int]]] = {tokenizer_id: [] for tokenizer_id in self._ledgers.due()}
        if not told:
            return
        for (tokenizer_id, handle), (req, engine) in self._reqs.items():
            told[tokenizer_id].append((handle, req.num_generated if engine is None else engine.generated(req)))
        for tokenizer_id, entries in told.items():
            if entries:
                self._ledgers.owe(tokenizer_id)
            self.outbox.ledger(tokenizer_id, self._ledgers.number, entries)

    def _waited_too_long(self) -> RhizomeError:
        if not self.engines:
            return Unavailable(f"no engine became ready within {self.config.queue_timeout_s:g} s")
        return DeadlineExceeded(f"waited over {self.config.queue_timeout_s:g} s to be started (--queue-timeout-s)")

    def _fit(self, req: Req) -> None:
        """Clip the output to what the engines can hold; refuse a prompt that none can."""
        capacity = max((e.capacity_tokens for e in self.engines.values()), default=None)
        if capacity is None:
            return
        if len(req.ids) >= capacity + (req.max_new_tokens == 0):
            raise ContextLengthExceeded(
                f"prompt of {len(req.ids):,} tokens does not fit the KV pool of {capacity:,}: shorten it or raise "
                "--max-total-tokens or --mem-fraction-static"
            )
        req.max_new_tokens = min(req.max_new_tokens, capacity - req.prompt_len)

    def _route(self, req: Req) -> None:
        try:
            self._fit(req)
        except ContextLengthExceeded as fault:  # came before its engine was known
            self.outbox.failed(req, fault)
            self._ended(req)
            return
        engine = router.choose(self.engines.values(), req)
        self._reqs[(req.tokenizer_id, req.handle)] = (req, engine)
        if engine is None:
            self.unrouted.append(req)
        else:
            engine.push(req)

    def _abort(self, key: tuple[str, int], *, silent: bool) -> None:
        req, engine = self._reqs.get(key, (None, None))
        if req is None:
            return
        if engine is not None:
            engine.abort(req, silent=silent)
            return
        if not silent:
            self.outbox.end(req, m.generation.ABORTED, total=req.num_generated)
        self._ended(req)

    def _fail(self, req: Req, engine: Engine | None, fault: RhizomeError) -> None:
        if engine is not None:
            engine.fail(req, fault)
        else:
            self.outbox.failed(req, fault)
            self._ended(req)

    def _ended(self, req: Req) -> None:
        req.done = True
        self._reqs.pop((req.tokenizer_id, req.handle), None)
        if req in self.unrouted:
            self.unrouted.remove(req)

"""[walk 8] One rank's engine: executes plans in order. Knows messages and devices, nothing of the bus.

`launch` is called by one thread (`service.py`), plan after plan: it queues the step's work on the device and returns;
`Launched.finish` waits for the result, on whatever thread. What a plan gets wrong is answered with an `EngineFault`
before anything is changed; after a fault the session is dead and its plans are ignored until the scheduler begins
another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from services.worker import memory
from services.worker.attention.backend import AttentionBackend
from services.worker.batch import Batch, build_batch
from services.worker.config import START_TIMEOUT_S
from services.worker.download import Mark, download, mark
from services.worker.engine_spec import EngineSpec
from services.worker.launched import Launched, Marks
from services.worker.lockstep import Lockstep
from services.worker.mask_inbox import MaskInbox
from services.worker.media_store import MediaStore
from services.worker.models.registry import Model
from services.worker.plan_check import Limits, Work, check_plan
from services.worker.prompt_logprobs import PromptLogprobs, prompt_logprobs
from services.worker.rows import I64, Rows
from services.worker.sampling.logprobs import Asked
from services.worker.sampling.masks import MaskUpdate, spread
from services.worker.sampling.sampler import Sampled, Sampler
from services.worker.tensor_parallel import Communicator
from services.worker.warm_up import warm_up_plans
from shared.errors import InvalidRequest
from shared.messages.step import EngineFault, StepPlan, StepResult

if TYPE_CHECKING:  # it needs Triton, which is not everywhere
    from services.worker.mixed_program import MixedProgram


class Decoding(Protocol):
    """Steps of decode rows alone, prepared beforehand: `decode_program.py`, `recorded_decode.py`."""

    def fits(self, rows: I64) -> bool:
        """Whether a step of `rows` can be run."""

    def run(self, rows: I64) -> tuple[Tensor, Tensor]:
        """One step of `rows` [D], D > 0, which have a token more afterwards.

        Returns:
            Hidden states [at least D, hidden], valid until the next run, and the rows' numbers [D] int64 on the device.
        """

    def forget(self) -> None:
        """A row has a new owner, or another prompt."""


class Engine:
    """State of one rank between plans. Used by one thread; `session` and `last_seq` may be read by others."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        model: Model,
        rows: Rows,
        attention: AttentionBackend,
        sampler: Sampler | None,
        comm: Communicator,
        media: MediaStore,
        min_tokens: int,
        decode_program: Decoding | None = None,
        mixed_program: MixedProgram | None = None,
    ) -> None:
        """
        Args:
            sampler: on rank 0 only; the others receive its tokens.
            media: embeddings of images and videos, put there by another thread.
            min_tokens: pad smaller forwards to this many tokens.
            decode_program: for steps without extends.
            mixed_program: for small steps with them.
        """
        self.spec, self.comm, self.media = spec, comm, media
        self.session, self.last_seq = "", -1
        self._model, self._rows, self._attention, self._sampler = model, rows, attention, sampler
        self._min_tokens = min_tokens
        self._decode_program, self._mixed_program = decode_program, mixed_program
        self._device = rows.last_token.device
        self._before = mark(self._device)
        self._lockstep = Lockstep(comm)
        self.masks = MaskInbox()
        """Where the masks of rows come, from another thread."""
        self._limits = Limits(spec.num_pages, spec.context_length, spec.vocab_size)
        self._decode_rows: I64 = np.zeros(0, np.int64)
        self._dead = False
        self._refused = ""

    @property
    def is_first(self) -> bool:
        """Whether this rank answers the scheduler."""
        return self.comm.rank == 0

    def execute(self, plan: StepPlan) -> StepResult | EngineFault | None:
        """`launch` and `finish` in one."""
        launched = self.launch(plan)
        return launched.finish() if isinstance(launched, Launched) else launched

    @torch.inference_mode()
    def launch(self, plan: StepPlan, arrived_s: float | None = None) -> Launched | EngineFault | None:
        """Queue one plan's work.

        Args:
            arrived_s: `time.perf_counter()` when the plan came, for the timing.

        Returns:
            The step on rank 0, None on the other ranks and for plans that are ignored, or why the session is over.
        """
        started_s = time.perf_counter()
        gap = self._follow(plan)
        if gap is not None:
            return gap
        if self._dead or plan.session != self.session:
            return None
        try:
            media = self.media.tokens(plan.session) if plan.ext_media is not None else {}
            work = check_plan(plan, self._rows, self._limits, self._decode_rows, media)
        except InvalidRequest as fault:
            return self.fail(plan, fault.message)
        if not self._lockstep.meet(plan.session, plan.seq):
            self._dead = True
            return None
        try:
            step = self._step(work, plan.seq)
        except (InvalidRequest, TimeoutError) as fault:
            return self.fail(plan, fault.message if isinstance(fault, InvalidRequest) else str(fault))
        self.media.drop(plan.session, work.drop_media)
        self.last_seq = plan.seq
        before, self._before = self._before, step.marks.done
        if not self.is_first:
            return None
        queued_ms = (started_s - (started_s if arrived_s is None else arrived_s)) * 1e3
        launch_ms = (time.perf_counter() - started_s) * 1e3
        return Launched(plan, step.tokens, step.asked, step.prompt, step.marks, before, queued_ms, launch_ms)

    def fail(self, plan: StepPlan, message: str) -> EngineFault:
        """End the session at this plan."""
        self._dead = True
        return EngineFault(self.spec.engine_id, plan.session, plan.seq, "execution", message)

    def warm_up(self, *, thorough: bool = False) -> None:
        """Run `warm_up_plans`, so that the first request finds everything there."""
        for plan in warm_up_plans(self.spec, thorough=thorough):
            self.comm.wait_for_all(START_TIMEOUT_S)  # only rank 0 compiles what samples
            outcome = self.execute(plan)
            assert not isinstance(outcome, EngineFault), outcome
        self._begin("", -1)

    def meet(self) -> None:
        """Return when all ranks have called this."""
        self.comm.wait_for_all(START_TIMEOUT_S)

    def memory_bytes(self) -> int:
        """Memory of this rank."""
        return memory.used_bytes(self._rows.last_token.device)

    def _follow(self, plan: StepPlan) -> EngineFault | None:
        """Keep the sequence: begin sessions, notice gaps."""
        if plan.session == self.session:
            if self._dead or plan.seq == self.last_seq + 1:
                return None
            self._dead = True
            return self._gap(plan, f"plan {plan.seq} came after {self.last_seq}")
        if plan.seq == 0:
            self._begin(plan.session, -1)
            return None
        if plan.session == self._refused:
            return None
        self._refused = plan.session
        return self._gap(plan, f"plan {plan.seq} of a session whose plan 0 never came")

    def _gap(self, plan: StepPlan, message: str) -> EngineFault:
        return EngineFault(self.spec.engine_id, plan.session, plan.seq, "gap", message)

    def _begin(self, session: str, last_seq: int) -> None:
        self.session, self.last_seq, self._dead = session, last_seq, False
        self._decode_rows = np.zeros(0, np.int64)
        self._rows.reset()
        self.media.begin(session)

    def _step(self, work: Work, seq: int) -> _Step:
        """
        Raises:
            InvalidRequest, TimeoutError: the masks are wrong, or did not come.
        """
        begun = prepared = forwarded = masked = mark(self._device)
        self._apply(work)
        sampled, prompt = None, None
        program = self._decode_program
        if program is not None and len(work.decode_rows) and not len(work.ext_rows) and program.fits(work.decode_rows):
            prepared = mark(self._device)
            hidden, index = program.run(work.decode_rows)
            logits = self._model.logits(hidden)
            forwarded = mark(self._device)
            masked = self._set_masks(work, seq, forwarded)
            sampled = self._sample(logits, work.decode_rows, index)
        elif len(work.ext_rows) or len(work.decode_rows):
            batch, forward = self._arrange(work)
            self._advance(work)
            prepared = mark(self._device)
            hidden = forward()
            wanted = len(batch.sample_rows)
            logits = self._model.logits(hidden.index_select(0, batch.sample_at)) if wanted else None
            forwarded = mark(self._device)
            self._count_forced(work)
            masked = self._set_masks(work, seq, forwarded)
            if wanted:
                sampled = self._sample(logits, batch.sample_rows, batch.sample_into)
            prompt = prompt_logprobs(work, hidden, self._model, self._top_wanted(work))
        tokens = download(self._rows.last_token.new_empty(0) if sampled is None else sampled.tokens)
        asked = None if sampled is None or sampled.asked is None else sampled.asked.fetch()
        prompt = None if prompt is None else prompt.fetch()
        return _Step(tokens, asked, prompt, Marks(begun, prepared, forwarded, masked, mark(self._device)))

    def _apply(self, work: Work) -> None:
        if self._decode_program is not None and (work.new_rows or len(work.ext_rows)):
            self._decode_program.forget()
        if work.new_rows:
            self._rows.init(work.new_rows)
            if self._sampler is not None:
                self._sampler.init(work.new_rows)
        if len(work.page_rows):
            self._rows.append_pages(work.page_rows, work.page_starts, work.page_lens)
        self._decode_rows = work.decode_rows

    def _arrange(self, work: Work) -> tuple[Batch, Callable[[], Tensor]]:
        """The step's arrays, and what computes its hidden states."""
        program = self._mixed_program
        if program is not None and program.fits(work):
            batch = program.load(work)
            return batch, lambda: program.run(batch)
        batch = build_batch(work, self._rows, self._min_tokens)
        attend = self._attention.prepare(batch)
        media = self.media.take(self.session, work.ext_media, batch.media_at)
        return batch, lambda: self._model.forward(batch.ids, batch.positions, attend, media)

    def _advance(self, work: Work) -> None:
        rows = self._rows
        rows.has_token[work.ext_rows] = work.ext_sample != 0
        moved = np.concatenate((work.ext_rows, work.decode_rows))
        rows.seq_lens.put(moved, np.concatenate((work.ext_starts + work.ext_lens, rows.lengths[work.decode_rows] + 1)))

    def _sample(self, logits: Tensor | None, rows: I64, at: Tensor) -> Sampled:
        """Sample for `rows` [S], which are `at` on the device, on rank 0; share the tokens, remember them as the
        rows' last. Logits [at least S, V]; the rest is padding."""
        last_token = self._rows.last_token
        if self._sampler is None:
            sampled = Sampled(last_token.new_empty(len(rows)))
        else:
            assert logits is not None
            sampled = self._sampler.sample(logits[: len(rows)], rows, at)
        last_token.index_copy_(0, at, self.comm.from_first(sampled.tokens))
        return sampled

    def _set_masks(self, work: Work, seq: int, forwarded: Mark) -> Mark:
        """Wait for the masks of the step's rows, whose forward is queued already; returns where the device has them."""
        if self._sampler is None or not len(work.masked_rows):
            return forwarded
        messages = self.masks.take(self.session, seq, len(work.masked_rows))
        spec = self.spec
        self._sampler.set_masks(MaskUpdate(messages, spec.max_rows, spec.mask_slots, spec.vocab_size))
        return mark(self._device)

    def _count_forced(self, work: Work) -> None:
        """Tokens of extends that a grammar forced are output as much as sampled ones."""
        forced = work.ext_forced > 0
        if self._sampler is None or not forced.any():
            return
        counts = work.ext_forced[forced]
        _, at = spread(work.ext_rows[forced], counts, np.cumsum(work.ext_lens)[forced])
        self._sampler.count_forced(work.ext_rows[forced], counts, work.ext_tokens[at])

    def _top_wanted(self, work: Work) -> I64 | None:
        return None if self._sampler is None else self._sampler.top_logprobs(work.ext_rows)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step leaves for the host, there when the device passes `marks.done`."""

    tokens: Tensor
    asked: Asked | None
    prompt: PromptLogprobs | None
    marks: Marks

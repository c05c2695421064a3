"""[walk 8] One rank's engine: executes plans in order. Knows messages and devices, nothing of the bus.

`execute` is called by one thread (`service.py`), plan after plan. What a plan gets wrong is answered with an
`EngineFault` before anything is changed; after a fault the session is dead and its plans are ignored until the
scheduler begins another.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from services.worker import memory
from services.worker.attention.backend import AttentionBackend
from services.worker.batch import Batch, build_batch
from services.worker.engine_spec import EngineSpec
from services.worker.lockstep import Lockstep
from services.worker.models.registry import Model
from services.worker.plan_check import Limits, Work, check_plan
from services.worker.prompt_logprobs import PromptLogprobs, prompt_logprobs
from services.worker.rows import I64, Rows
from services.worker.sampling.sampler import Sampled, Sampler
from services.worker.tensor_parallel import Communicator
from shared.errors import InvalidRequest
from shared.messages.step import EngineFault, RowInit, StepPlan, StepResult, StepTiming

_WARM_UP = "warm-up"
_WARM_UP_TOKENS = 32


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
        min_tokens: int,
    ) -> None:
        """
        Args:
            sampler: on rank 0 only; the others receive its tokens.
            min_tokens: pad smaller forwards to this many tokens.
        """
        self.spec, self.comm = spec, comm
        self.session, self.last_seq = "", -1
        self._model, self._rows, self._attention, self._sampler = model, rows, attention, sampler
        self._min_tokens = min_tokens
        self._lockstep = Lockstep(comm)
        self._limits = Limits(spec.num_pages, spec.context_length, spec.vocab_size)
        self._decode_rows: I64 = np.zeros(0, np.int64)
        self._dead = False
        self._refused = ""

    @property
    def is_first(self) -> bool:
        """Whether this rank answers the scheduler."""
        return self.comm.rank == 0

    @torch.inference_mode()
    def execute(self, plan: StepPlan, arrived_s: float | None = None) -> StepResult | EngineFault | None:
        """Run one plan.

        Args:
            arrived_s: `time.perf_counter()` when the plan came, for the timing.

        Returns:
            The result on rank 0, None on the other ranks and for plans that are ignored, or why the session is over.
        """
        started_s = time.perf_counter()
        gap = self._follow(plan)
        if gap is not None:
            return gap
        if self._dead or plan.session != self.session:
            return None
        try:
            work = check_plan(plan, self._rows, self._limits, self._decode_rows)
        except InvalidRequest as fault:
            return self.fail(plan, fault.message)
        if not self._lockstep.meet(plan.session, plan.seq):
            self._dead = True
            return None
        result = self._step(plan, work, started_s, started_s if arrived_s is None else arrived_s)
        self.last_seq = plan.seq
        return result if self.is_first else None

    def fail(self, plan: StepPlan, message: str) -> EngineFault:
        """End the session at this plan."""
        self._dead = True
        return EngineFault(self.spec.engine_id, plan.session, plan.seq, "execution", message)

    def warm_up(self) -> None:
        """Run a small prompt and two decode steps, so that the first request finds everything allocated."""
        context = self.spec.context_length
        tokens = min(_WARM_UP_TOKENS, context - 2, self.spec.num_pages * self.spec.page_size - 2)
        if tokens < 1:
            return
        pages = -(-(tokens + 2) // self.spec.page_size)

        def vector(*values: int) -> np.ndarray:
            return np.array(values, np.int32)

        prompt = StepPlan(
            self.spec.engine_id, _WARM_UP, 0, new_rows=[RowInit(0, top_p=0.9)],
            page_rows=vector(0), page_starts=vector(1), page_lens=vector(pages), ext_rows=vector(0),
            ext_starts=vector(0), ext_lens=vector(tokens), ext_tokens=np.zeros(tokens, np.int32),
            ext_sample=np.ones(1, np.uint8), decode_rows=vector(),
        )  # fmt: skip
        self.execute(prompt)
        for seq in (1, 2):
            self.execute(StepPlan(self.spec.engine_id, _WARM_UP, seq, decode_rows=vector(0)))
        self._begin("", -1)

    def meet(self) -> None:
        """Return when all ranks have called this."""
        self.comm.all_integers([0])

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

    def _step(self, plan: StepPlan, work: Work, started_s: float, arrived_s: float) -> StepResult:
        self._apply(work)
        sampled, prompt = Sampled(torch.zeros(0, dtype=torch.int64)), None
        prepared_s = forwarded_s = time.perf_counter()
        if len(work.ext_rows) or len(work.decode_rows):
            batch = build_batch(work, self._rows, self._min_tokens)
            attend = self._attention.prepare(batch)
            self._advance(work)
            prepared_s = time.perf_counter()
            hidden = self._model.forward(batch.ids, batch.positions, attend)
            logits = self._logits(hidden, batch)
            forwarded_s = time.perf_counter()
            sampled = self._sample(logits, batch)
            prompt = prompt_logprobs(work, hidden, self._model, self._top_wanted(work))
        tokens = sampled.tokens.cpu().numpy().astype(np.int32)
        timing = StepTiming(
            queued_ms=(started_s - arrived_s) * 1e3,
            prepare_ms=(prepared_s - started_s) * 1e3,
            forward_ms=(forwarded_s - prepared_s) * 1e3,
            sample_ms=(time.perf_counter() - forwarded_s) * 1e3,
        )
        return _result(plan, tokens, sampled, prompt, timing)

    def _apply(self, work: Work) -> None:
        if work.new_rows:
            self._rows.init(work.new_rows)
            if self._sampler is not None:
                self._sampler.state.init(work.new_rows)
        if len(work.page_rows):
            self._rows.append_pages(work.page_rows, work.page_starts, work.page_lens)
        self._decode_rows = work.decode_rows

    def _advance(self, work: Work) -> None:
        self._rows.lengths[work.ext_rows] = work.ext_starts + work.ext_lens
        self._rows.has_token[work.ext_rows] = work.ext_sample != 0
        self._rows.lengths[work.decode_rows] += 1

    def _logits(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """[S, V] fp32 on rank 0, for the sampled positions only."""
        wanted = len(batch.sample_rows)
        if not wanted:
            return None
        logits = self._model.logits(hidden.index_select(0, batch.sample_at))
        return None if logits is None else logits[:wanted]

    def _sample(self, logits: Tensor | None, batch: Batch) -> Sampled:
        """Sample on rank 0, share the tokens, remember them as the rows' last."""
        last_token = self._rows.last_token
        if not len(batch.sample_rows):
            return Sampled(last_token.new_empty(0))
        if self._sampler is None:
            sampled = Sampled(last_token.new_empty(len(batch.sample_rows)))
        else:
            assert logits is not None
            sampled = self._sampler.sample(logits, batch.sample_rows)
        tokens = self.comm.from_first(sampled.tokens)
        last_token.index_copy_(0, batch.sample_into, tokens)
        return sampled

    def _top_wanted(self, work: Work) -> I64 | None:
        return None if self._sampler is None else self._sampler.state.top_logprobs[work.ext_rows]


def _result(
    plan: StepPlan, tokens: np.ndarray, sampled: Sampled, prompt: PromptLogprobs | None, timing: StepTiming
) -> StepResult:
    return StepResult(
        plan.engine_id,
        plan.session,
        plan.seq,
        tokens,
        logprobs=sampled.logprobs,
        top_ids=sampled.top_ids,
        top_logprobs=sampled.top_logprobs,
        prompt_counts=None if prompt is None else prompt.counts,
        prompt_logprobs=None if prompt is None else prompt.logprobs,
        prompt_top_ids=None if prompt is None else prompt.top_ids,
        prompt_top_logprobs=None if prompt is None else prompt.top_logprobs,
        timing=timing,
    )

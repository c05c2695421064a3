"""A scheduler with scripted engines and no bus: submit, step, collect tokens."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from services.scheduler.config import SchedulerConfig
from services.scheduler.engine import Engine
from services.scheduler.grammar import Grammar
from services.scheduler.request import Req
from services.scheduler.scheduler import Scheduler
from shared import messages as m
from shared.grammar import GrammarSpec
from shared.log import Log
from shared.messages.generation import ABORTED, RUNNING
from shared.sampling import NEUTRAL, SamplingParams
from tests.fakes.aside import LateAside
from tests.fakes.engine import ScriptedEngine, engine_info

EOS = 2
I32 = npt.NDArray[np.int32]


@dataclass
class Output:
    """What a tokenizer would have received for one handle."""

    tokens: list[int] = field(default_factory=list)
    finish: int = RUNNING
    error: m.ErrorInfo | None = None
    cached: int = -1
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)


class Driver:
    """Time is a number that the test moves. Plans wait in `plans` until `answer` executes one."""

    def __init__(
        self, info: m.EngineInfo | None = None, config: SchedulerConfig | None = None, *, eos_every: int = 0
    ) -> None:
        self.now = 0.0
        self.eos_every = eos_every
        self.info = info or engine_info()
        self.scheduler = Scheduler(
            "scheduler-0-test", config or SchedulerConfig(), Log(logging.getLogger("test"), {}), lambda: self.now
        )
        self.engines: dict[str, ScriptedEngine] = {}
        self.plans: deque[m.StepPlan] = deque()
        self.asks: deque[m.StageMedia] = deque()
        """Images that engines should have at hand."""
        self.masks: dict[tuple[str, int], list[m.StepMasks]] = {}
        """By session and number of the plan."""
        self.history: list[m.StepPlan] = []
        """Every plan ever built."""
        self.outputs: dict[int, Output] = {}
        self.ledgers: list[tuple[str, m.TokenBatch]] = []
        """With the tokenizers that they were for."""
        self._sessions = 0
        self._handles = 0
        self.aside = self.scheduler.aside = LateAside()
        self.open()

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines[self.info.engine_id]

    @property
    def session(self) -> Engine:
        """The scheduler's view of the first engine."""
        return self.scheduler.engines[self.info.engine_id]

    def open(self, info: m.EngineInfo | None = None) -> None:
        """A new session with the first engine, or with another one."""
        info = info or self.info
        self.engines.setdefault(info.engine_id, ScriptedEngine(info, eos_id=EOS, eos_every=self.eos_every))
        self.scheduler.open(info, f"session-{self._sessions}")
        self._sessions += 1

    def submit(
        self, prompt: list[int], max_new_tokens: int, *, sampling: SamplingParams = NEUTRAL, ignore_eos: bool = False,
        logprob_start: int | None = None, salt: str = "", priority: int = 0, timeout_s: float | None = None,
        tokenizer: str = "tok", grammar: Grammar | None = None, jump_forward: bool = True,
        media: Sequence[m.MediaSpan] = (), positions: I32 | None = None, position_delta: int = 0,
    ) -> int:  # fmt: skip
        """
        Args:
            grammar: constrains the request; compiled at once.
            media: images, whose placeholders are in the prompt.
        """
        self._handles += 1
        self.outputs[self._handles] = Output()
        spec = None if grammar is None else GrammarSpec("regex", "scripted", jump_forward=jump_forward)
        req, _ = self.scheduler.submit(
            m.TokenizedRequest(
                rid=f"r{self._handles}", tokenizer_id=tokenizer, handle=self._handles,
                input_ids=np.array(prompt, np.int32),
                sampling=dataclasses.replace(sampling, max_new_tokens=max_new_tokens, ignore_eos=ignore_eos),
                eos_token_ids=[EOS], return_logprob=logprob_start is not None,
                logprob_start_len=-1 if logprob_start is None else logprob_start,
                cache_salt=salt, priority=priority, timeout_s=timeout_s, grammar=spec,
                media=list(media), positions=positions, position_delta=position_delta,
            )
        )  # fmt: skip
        if grammar is not None:
            self.scheduler.compiled(req, grammar)
        return self._handles

    def req(self, handle: int, tokenizer: str = "tok") -> Req:
        """The scheduler's request, while it has not ended."""
        return self.scheduler._reqs[(tokenizer, handle)][0]

    def abort(self, *handles: int, silent: bool = False) -> None:
        self.scheduler.abort(m.AbortHandles(tokenizer_id="tok", handles=list(handles), silent=silent))
        self.collect()

    def tick(self, after_s: float = 0.0) -> None:
        """The scheduler's clock strikes, `after_s` later than now."""
        self.now += after_s
        self.scheduler.tick(15.0)
        self.collect()

    def report(self, *, received: int | None = None, done: int | None = None, after_s: float = 0.0) -> None:
        """The first engine says where it stands, `after_s` later than now.

        Args:
            received: last plan that it got; by default all that were sent.
            done: last plan that it answered; by default all whose answer the scheduler has.
        """
        self.now += after_s
        in_flight, seq = self.session.in_flight, self.session.seq
        info = dataclasses.replace(
            self.info, session=self.session.session, received_seq=seq - 1 if received is None else received,
            last_seq=seq - len(in_flight) - 1 if done is None else done,
        )  # fmt: skip
        self.scheduler.heard(info)

    def pump(self) -> int:
        """Build every plan that may be sent; returns how many."""
        built = [plan for _, plan in self.scheduler.plans()]
        self.plans += built
        self.history += built
        self.asks += [ask for _, ask in self.scheduler.stagings()]
        for _, masks in self.scheduler.masks():
            self.masks.setdefault((masks.session, masks.seq), []).append(masks)
        self.collect()
        return len(built)

    def stage(self, *, lost: bool = False) -> bool:
        """An engine answers to the oldest demand for images; False if there is none."""
        if not self.asks:
            return False
        ask = self.asks.popleft()
        self.scheduler.staged(self.engines[ask.engine_id].stage(ask, lost=lost))
        return True

    def execute(self) -> m.StepResult:
        """Execute the oldest plan; its result is the caller's."""
        plan = self.plans.popleft()
        return self.engines[plan.engine_id].execute(plan, self.masks.pop((plan.session, plan.seq), ()))

    def answer(self) -> bool:
        """Execute the oldest plan, once it has its masks, and apply its result; False if there is none."""
        if not self.plans:
            return False
        while self._wants_masks(self.plans[0]):
            self.pump()
        self.scheduler.apply(self.execute())
        self.collect()
        return True

    def _wants_masks(self, plan: m.StepPlan) -> bool:
        live = any(engine.session == plan.session for engine in self.scheduler.engines.values())
        return live and plan.masked_rows is not None and (plan.session, plan.seq) not in self.masks

    def step(self) -> None:
        self.pump()
        self.answer()

    def run(self, most_steps: int = 10_000) -> None:
        """Until nothing is left to do."""
        for _ in range(most_steps):
            self.pump()
            if not self.stage() and not self.answer() and not self.aside.tasks:
                return
        raise AssertionError(f"not done after {most_steps} steps")

    def check(self) -> None:
        for engine in self.scheduler.engines.values():
            engine.pool.check()

    def collect(self) -> None:
        for tokenizer_id, batch in self.scheduler.outbox.take():
            self._collect(batch)
            if batch.ledger:
                self.ledgers.append((tokenizer_id, batch))

    def _collect(self, batch: m.TokenBatch) -> None:
        at = lp_at = 0
        for i, handle in enumerate(batch.handles.tolist()):
            out = self.outputs[handle]
            assert out.finish == RUNNING, "an entry after the last one"
            count = int(batch.counts[i])
            out.tokens += batch.tokens[at : at + count].tolist()
            if batch.logprobs is not None:
                out.logprobs += batch.logprobs[at : at + count].tolist()
            at += count
            if batch.prompt_counts is not None and batch.prompt_logprobs is not None:
                n = int(batch.prompt_counts[i])
                out.prompt_logprobs += batch.prompt_logprobs[lp_at : lp_at + n].tolist()
                lp_at += n
            assert batch.totals[i] == len(out.tokens), "the running total does not fit the tokens received"
            out.finish = int(batch.finish[i])
            if batch.cached_tokens[i] >= 0:
                assert out.cached == -1, "cached tokens told twice"
                out.cached = int(batch.cached_tokens[i])
        for error in batch.errors:
            self.outputs[error.handle].error, self.outputs[error.handle].finish = error.error, ABORTED


def extended_tokens(plans: list[m.StepPlan]) -> int:
    """Prompt tokens that these plans compute."""
    return sum(int(plan.ext_lens.sum()) for plan in plans if plan.ext_lens is not None)

"""A tokenizer that only counts: hands token ids to a scheduler and follows the steps of its engine on the bus."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_sections.workloads import Work
from shared import log
from shared import messages as m
from shared.actor import Actor
from shared.bus import NatsBus
from shared.config import CommonConfig
from shared.errors import RhizomeError
from shared.messages.generation import RUNNING
from shared.sampling import NEUTRAL, SamplingParams

PATIENCE_S = 120.0
GREEDY = dataclasses.replace(NEUTRAL, temperature=0.0, ignore_eos=True)
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One result of the engine, as it went over the bus."""

    came_s: float
    tokens: int
    timing: m.StepTiming


class TokenClient:
    """Lives as long as its event loop."""

    def __init__(self, bus: NatsBus) -> None:
        self._actor = Actor("tokenizer", CommonConfig(name="tokenizer-bench"), bus, log.setup("bench", "error"))
        self.steps: list[Step] = []
        self.running: set[int] = set()
        """Handles of requests that have not ended."""
        self.scheduler_id = ""
        self._memory: asyncio.Future[int] | None = None
        self._next_handle = 1
        self._all_done = asyncio.Event()
        self.errors: list[str] = []

    async def start(self) -> None:
        subjects = self._actor.subjects
        await self._actor.on(subjects.tokenizer_tokens(self._actor.id), m.TokenBatch, self._on_tokens)
        # A session's name is the scheduler's id and a number.
        await self._actor.on(subjects.scheduler_result("*.*"), m.StepResult, self._on_result)
        await self._actor.on(subjects.scheduler_engines("scheduler-0"), m.EngineInfo, self._on_engine)
        await self._actor.start()
        await self._actor.set_state("ready")

    async def stop(self) -> None:
        await self._actor.stop("done")

    async def wait_until_served(self) -> None:
        """Return when a scheduler with an engine has generated a token.

        Raises:
            TimeoutError: there is none.
        """
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await self.generate([Work(np.arange(8, dtype=np.int32), 2)])
                except RhizomeError:
                    await asyncio.sleep(_POLL_S)
                else:
                    return

    async def generate(self, work: list[Work]) -> None:
        """Run greedy requests to their end, all handed over at once.

        Raises:
            RhizomeError: the scheduler refused one.
            TimeoutError: they did not end.
        """
        self.steps.clear()
        self._all_done.clear()
        handles = range(self._next_handle, self._next_handle + len(work))
        self._next_handle = handles.stop
        self.running.update(handles)
        try:
            await asyncio.gather(*(self._ask(handle, item) for handle, item in zip(handles, work, strict=True)))
        except RhizomeError:
            self.running.clear()
            raise
        await self.wait_until_idle()

    async def wait_until_idle(self) -> None:
        """Return when every request has ended.

        Raises:
            TimeoutError: they do not.
        """
        async with asyncio.timeout(PATIENCE_S):
            while self.running:
                self._all_done.clear()
                await self._all_done.wait()

    async def submit(self, work: Work, *, sampling: SamplingParams = GREEDY, return_logprob: bool = False) -> None:
        """One more request; its end is seen in `running` and `errors`."""
        handle = self._next_handle
        self._next_handle += 1
        self.running.add(handle)
        await self._ask(handle, work, sampling, return_logprob)

    async def abort(self, handles: list[int]) -> None:
        """Give requests up; those that still run get a last word."""
        if self.scheduler_id:
            await self._actor.send(
                self._actor.subjects.scheduler_abort(self.scheduler_id), m.AbortHandles(self._actor.id, handles)
            )

    async def info(self) -> m.SchedulerInfo:
        """The scheduler's account of itself."""
        subject = self._actor.subjects.scheduler_info(self.scheduler_id)
        return await self._actor.ask(subject, m.Empty(), m.SchedulerInfo)

    async def device_bytes(self) -> int:
        """What the engine says next of its memory."""
        self._memory = asyncio.get_running_loop().create_future()
        return await self._memory

    async def _ask(
        self, handle: int, work: Work, sampling: SamplingParams = GREEDY, return_logprob: bool = False
    ) -> None:
        request = m.TokenizedRequest(
            rid=f"r{handle}", tokenizer_id=self._actor.id, handle=handle, input_ids=work.prompt,
            sampling=dataclasses.replace(sampling, max_new_tokens=work.output), return_logprob=return_logprob,
        )  # fmt: skip
        self.scheduler_id = (await self._actor.ask(self._actor.subjects.schedule, request, m.Queued)).scheduler_id

    def _on_tokens(self, batch: m.TokenBatch) -> None:
        if batch.ledger:
            return
        self.running.difference_update(batch.handles[batch.finish != RUNNING].tolist())
        for failed in batch.errors:
            self.errors.append(failed.error.message)
            self.running.discard(failed.handle)
        if not self.running:
            self._all_done.set()

    def _on_engine(self, info: m.EngineInfo) -> None:
        if self._memory is not None and not self._memory.done():
            self._memory.set_result(info.memory_bytes)

    def _on_result(self, result: m.StepResult) -> None:
        self.steps.append(Step(time.perf_counter(), len(result.tokens), result.timing))

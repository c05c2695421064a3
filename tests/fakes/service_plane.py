"""The neighbours of a scheduler on the bus: a worker and a tokenizer that stand for the real ones.

`Connection` gives each instance its own end of a shared bus, so that one can be stopped or killed without the others.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import numpy as np

from services.worker.progress import Progress
from shared import log
from shared import messages as m
from shared.actor import Actor
from shared.bus import Bus, Handler
from shared.config import CommonConfig
from shared.messages.generation import RUNNING
from shared.sampling import NEUTRAL
from tests.fakes.engine import ScriptedEngine, engine_info
from tests.fakes.scheduler_driver import EOS, Output

LOG = log.setup("test", "error")
ANNOUNCE_S = 0.02
PATIENCE_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is awaited has no event of its own
            await asyncio.sleep(0.001)


class Connection:
    """One instance's end of a bus that outlives it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._subscriptions: list[Callable[[], Awaitable[None]]] = []
        self.subjects: list[str] = []
        """Of the subscriptions that have not ended."""
        self.max_payload_bytes = bus.max_payload_bytes
        self.publish, self.request, self.gather = bus.publish, bus.request, bus.gather
        self.flush, self.announce = bus.flush, bus.announce
        self.put_object, self.get_object, self.delete_object = bus.put_object, bus.get_object, bus.delete_object

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], Awaitable[None]]:
        end = await self._bus.subscribe(subject, handler, queue)
        self.subjects.append(subject)
        ended = False

        async def end_once() -> None:
            nonlocal ended
            if not ended:
                ended = True
                await end()
                self.subjects.remove(subject)

        self._subscriptions.append(end_once)
        return end_once

    async def close(self) -> None:
        for end in self._subscriptions:
            await end()


def actor_on(bus: Bus, service: str, name: str = "") -> Actor:
    """An actor with its own end of the bus."""
    return Actor(service, CommonConfig(name=name or f"{service}-0"), Connection(bus), LOG)


async def kill(actor: Actor) -> None:
    """It stops hearing and speaking at once; nobody is told."""
    await actor.bus.close()
    for task in list(actor._tasks):
        task.cancel()


class Worker:
    """A worker whose engine is scripted. `answer` says what comes of a plan; None = nothing."""

    def __init__(self, bus: Bus, name: str = "worker-0", **size: int) -> None:
        self.actor = actor_on(bus, "worker", name)
        self.info = dataclasses.replace(engine_info(engine_id=self.actor.id, **size), name=name)
        self.engine = ScriptedEngine(self.info, eos_id=EOS)
        self.plans: list[m.StepPlan] = []
        self._progress = Progress()
        self.open = asyncio.Event()
        """While it is not set, plans wait."""
        self.open.set()
        self.answer: Callable[[m.StepPlan], m.StepResult | m.EngineFault | None] = self.engine.execute

    async def start(self) -> None:
        await self.actor.on(self.actor.subjects.engine_plan(self.info.engine_id), m.StepPlan, self._on_plan)
        await self.actor.start()
        self.actor.spawn(self._announce_forever())

    async def _on_plan(self, plan: m.StepPlan) -> None:
        self.plans.append(plan)
        self._progress.received(plan)
        await self.open.wait()
        answer, subjects = self.answer(plan), self.actor.subjects
        self._progress.done(plan)
        if isinstance(answer, m.StepResult):
            await self.actor.send(subjects.scheduler_result(plan.session), answer)
        elif answer is not None:
            await self.actor.send(subjects.scheduler_fault(plan.session), answer)

    async def _announce_forever(self) -> None:
        while True:
            at = self._progress
            info = dataclasses.replace(
                self.info, session=at.session, received_seq=at.received_seq, last_seq=at.last_seq
            )  # fmt: skip
            await self.actor.send(self.actor.subjects.scheduler_engines("scheduler-0"), info)
            await asyncio.sleep(ANNOUNCE_S)


class Tokenizer:
    """A tokenizer that keeps the ids."""

    def __init__(self, bus: Bus, name: str = "tokenizer-0") -> None:
        self.actor = actor_on(bus, "tokenizer", name)
        self.outputs: dict[int, Output] = {}
        self.batches: list[m.TokenBatch] = []

    async def start(self) -> None:
        await self.actor.on(self.actor.subjects.tokenizer_tokens(self.actor.id), m.TokenBatch, self._on_tokens)
        await self.actor.start()
        await self.actor.set_state("ready")

    async def submit(self, prompt: list[int], max_new_tokens: int) -> int:
        """Queue a request that runs to its length; returns its handle.

        Raises:
            RhizomeError: what the scheduler answered.
        """
        handle = len(self.outputs) + 1
        self.outputs[handle] = Output()
        request = m.TokenizedRequest(
            rid=f"r{handle}", tokenizer_id=self.actor.id, handle=handle, input_ids=np.array(prompt, np.int32),
            sampling=dataclasses.replace(NEUTRAL, max_new_tokens=max_new_tokens, ignore_eos=True),
        )  # fmt: skip
        await self.actor.ask(self.actor.subjects.schedule, request, m.Queued)
        return handle

    async def finished(self, handle: int) -> Output:
        await until(lambda: self.outputs[handle].finish != RUNNING)
        return self.outputs[handle]

    def _on_tokens(self, batch: m.TokenBatch) -> None:
        self.batches.append(batch)
        at = 0
        for i, handle in enumerate(batch.handles.tolist()):
            out, count = self.outputs[handle], int(batch.counts[i])
            out.tokens += batch.tokens[at : at + count].tolist()
            at += count
            assert batch.totals[i] == len(out.tokens)
            out.finish = int(batch.finish[i])
        for error in batch.errors:
            self.outputs[error.handle].error = error.error

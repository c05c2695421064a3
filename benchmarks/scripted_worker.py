"""A worker without a model: answers every plan at once, or after a fixed time, with scripted tokens.

It speaks the worker's side of the bus, so the service plane around it cannot tell the difference. Started by
`benchmarks.stack`.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field, replace

from services.worker.mask_inbox import MaskInbox
from services.worker.progress import Progress
from shared import messages as m
from shared.actor import HEARTBEAT_S, Actor
from shared.config import CommonConfig, option
from shared.process import Drain
from shared.process import main as run_service
from tests.fakes.engine import ScriptedEngine, engine_info


@dataclass(frozen=True, slots=True)
class ScriptedWorkerConfig:
    """Size of the engine that it pretends to be."""

    scheduler_name: str = option("scheduler-0", help="scheduler to work for")
    max_rows: int = option(256, help="most running requests")
    num_pages: int = option(20_000, help="pages of the KV pool")
    page_size: int = option(16, help="tokens per page")
    context_length: int = option(8192, help="longest prompt plus answer, tokens")
    vocab_size: int = option(49_152, help="token ids are below this")
    mask_slots: int = option(0, help="masks that its bank holds; 0 = it serves no grammars")
    step_ms: float = option(0.0, help="milliseconds a step takes, one step after the other; 0 = none")
    common: CommonConfig = field(default_factory=CommonConfig)


class ScriptedWorker:
    """One engine on the bus; plans are executed in order of arrival, one at a time."""

    def __init__(self, actor: Actor, config: ScriptedWorkerConfig) -> None:
        self._actor, self._config = actor, config
        self._info = engine_info(
            engine_id=actor.id, num_pages=config.num_pages, page_size=config.page_size, max_rows=config.max_rows,
            context_length=config.context_length, vocab_size=config.vocab_size, mask_slots=config.mask_slots,
        )  # fmt: skip
        # Masks are obeyed where the whole prefix is followed, which costs more per token.
        self._engine = ScriptedEngine(self._info, check=config.mask_slots > 0)
        self._masks = MaskInbox()
        self._plans: asyncio.Queue[m.StepPlan] = asyncio.Queue()
        self._progress = Progress()

    async def start(self) -> None:
        actor = self._actor
        await actor.on(actor.subjects.engine_plan(actor.id), m.StepPlan, self._on_plan)
        if self._config.mask_slots:
            await actor.on(actor.subjects.engine_masks(actor.id), m.StepMasks, self._masks.put)
        await actor.start()
        await actor.set_state("ready")
        actor.spawn(self._announce_forever())
        if self._config.step_ms:
            actor.spawn(self._work_forever())

    async def _on_plan(self, plan: m.StepPlan) -> None:
        self._progress.received(plan)
        if plan.seq == 0:
            self._masks.begin(plan.session)
        await (self._plans.put(plan) if self._config.step_ms else self._answer(plan))

    async def _answer(self, plan: m.StepPlan) -> None:
        rows = 0 if plan.masked_rows is None else len(plan.masked_rows)
        masks = await asyncio.to_thread(self._masks.take, plan.session, plan.seq, rows) if rows else []
        result = self._engine.execute(plan, masks)
        self._progress.done(plan)
        await self._actor.send(self._actor.subjects.scheduler_result(plan.session), result)

    async def _work_forever(self) -> None:
        """Take as long as a device would, without using the CPU."""
        while True:
            plan = await self._plans.get()
            await asyncio.sleep(self._config.step_ms / 1e3)
            await self._answer(plan)

    async def _announce_forever(self) -> None:
        while True:
            at = self._progress
            info = replace(self._info, session=at.session, received_seq=at.received_seq, last_seq=at.last_seq)
            await self._actor.send(self._actor.subjects.scheduler_engines(self._config.scheduler_name), info)
            await asyncio.sleep(HEARTBEAT_S)


async def start(actor: Actor, config: ScriptedWorkerConfig) -> Drain | None:
    await ScriptedWorker(actor, config).start()
    return None


if __name__ == "__main__":
    sys.exit(run_service("worker", ScriptedWorkerConfig, "A worker that pretends.", start))

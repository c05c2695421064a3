"""The worker on a bus: announcement, results, faults, draining, and the end of a broken group."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from services.worker.config import WorkerConfig
from services.worker.engine_spec import EngineSpec
from services.worker.mask_inbox import MaskInbox
from services.worker.service import WorkerService
from shared import log, wire
from shared import messages as m
from shared.actor import Actor
from shared.bus import Bus, LocalBus, NatsBus
from shared.config import CommonConfig
from shared.errors import ConfigError
from shared.subjects import Subjects

STALL_TIMEOUT_S = 0.2
CONFIG = WorkerConfig(model_path="/models/tiny", common=CommonConfig(deployment="t"))
SUBJECTS = Subjects("t")


@dataclasses.dataclass
class ScriptedStep:
    result: m.StepResult
    wait: Callable[[m.StepResult], None] = lambda _: None

    def finish(self) -> m.StepResult:
        self.wait(self.result)
        return self.result


class ScriptedEngine:
    """Answers every plan with its sequence number as a token; what `act` says comes first, then what `wait` says."""

    def __init__(
        self,
        spec: EngineSpec,
        act: Callable[[m.StepPlan], None] = lambda _: None,
        wait: Callable[[m.StepResult], None] = lambda _: None,
    ) -> None:
        self.spec, self.session, self.last_seq = spec, "", -1
        self.masks = MaskInbox(timeout_s=5.0)
        self._act, self._wait = act, wait

    is_first = True

    def launch(self, plan: m.StepPlan, arrived_s: float | None = None) -> ScriptedStep:
        self._act(plan)
        self.session, self.last_seq = plan.session, plan.seq
        if plan.masked_rows is not None:
            slots = [masks.slots for masks in self.masks.take(plan.session, plan.seq, len(plan.masked_rows))]
            masked = m.StepResult(self.spec.engine_id, plan.session, plan.seq, np.concatenate(slots))
            return ScriptedStep(masked, self._wait)
        tokens = np.array([plan.seq], np.int32)
        return ScriptedStep(m.StepResult(self.spec.engine_id, plan.session, plan.seq, tokens), self._wait)

    def fail(self, plan: m.StepPlan, message: str) -> m.EngineFault:
        return m.EngineFault(self.spec.engine_id, plan.session, plan.seq, "execution", message)

    def meet(self) -> None:
        pass

    def memory_bytes(self) -> int:
        return 123


class Inbox:
    """Messages of one subject, awaitable one by one."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    @classmethod
    async def on(cls, bus: Bus, subject: str, kind: type) -> Inbox:
        inbox = cls()

        async def put(data: bytes, _: str) -> None:
            inbox._queue.put_nowait(wire.decode(kind, data))

        await bus.subscribe(subject, put)
        await bus.flush()
        return inbox

    @property
    def empty(self) -> bool:
        return self._queue.empty()

    async def next(self, fits: Callable[[Any], bool] = lambda _: True) -> Any:
        while True:
            got = await asyncio.wait_for(self._queue.get(), 20)
            if fits(got):
                return got


def service(
    bus: Bus,
    act: Callable[[m.StepPlan], None] = lambda _: None,
    config: WorkerConfig = CONFIG,
    peer: str = "",
    wait: Callable[[m.StepResult], None] = lambda _: None,
    stall_timeout_s: float = 60.0,
    build_first: Callable[[], None] = lambda: None,
) -> WorkerService:
    def build(config: WorkerConfig, instance: str, _: log.Log) -> ScriptedEngine:
        build_first()
        return ScriptedEngine(
            EngineSpec(
                engine_id=instance, group=[instance, *([peer] if peer else [])], model=config.model_name,
                tp_size=config.tp_size, device="cpu", dtype="float32", attention_backend="none", page_size=16,
                num_pages=8, max_rows=4, context_length=64, vocab_size=100, prefill_tokens=512,
                mask_slots=8,
            ),
            act,
            wait,
        )  # fmt: skip

    actor = Actor("worker", config.common, bus, log.setup("worker", "error"))
    return WorkerService(actor, config, build, stall_timeout_s)


async def serve(worker: WorkerService) -> int:
    """What the process does; its exit status."""
    await worker.start()
    return await worker.actor.run(worker.drain)


async def test_a_ready_engine_announces_itself_and_answers_plans_in_order(bus: Bus) -> None:
    infos = await Inbox.on(bus, SUBJECTS.scheduler_engines("scheduler-0"), m.EngineInfo)
    results = await Inbox.on(bus, SUBJECTS.scheduler_result("sched-1.1"), m.StepResult)
    worker = service(bus)
    await worker.start()
    info = await infos.next()
    assert (info.state, info.model, info.num_pages, info.name) == ("ready", "tiny", 8, worker.actor.name)
    assert (info.memory_bytes, info.session, info.last_seq) == (123, "", -1)
    for seq in range(20):
        await bus.publish(
            SUBJECTS.engine_plan(info.engine_id), wire.encode(m.StepPlan(info.engine_id, "sched-1.1", seq))
        )
    got = [await results.next() for _ in range(20)]
    assert [(r.seq, r.tokens.tolist()) for r in got] == [(seq, [seq]) for seq in range(20)]
    assert (await infos.next(lambda i: i.last_seq == 19)).session == "sched-1.1"


async def test_an_error_while_executing_is_a_fault_and_the_engine_goes_on(bus: Bus) -> None:
    def act(plan: m.StepPlan) -> None:
        if plan.session == "a.1":
            raise RuntimeError("out of memory")

    faults = await Inbox.on(bus, SUBJECTS.scheduler_fault("a.1"), m.EngineFault)
    results = await Inbox.on(bus, SUBJECTS.scheduler_result("a.2"), m.StepResult)
    worker = service(bus, act)
    await worker.start()
    engine_id = worker.engine.spec.engine_id
    for session in ("a.1", "a.2"):
        await bus.publish(SUBJECTS.engine_plan(engine_id), wire.encode(m.StepPlan(engine_id, session, 0)))
    fault = await faults.next()
    assert (fault.reason, fault.message) == ("execution", "RuntimeError: out of memory")
    assert (await results.next()).seq == 0


async def test_bytes_that_are_no_plan_cost_nothing_but_themselves(bus: Bus) -> None:
    results = await Inbox.on(bus, SUBJECTS.scheduler_result("a.1"), m.StepResult)
    worker = service(bus)
    await worker.start()
    subject = SUBJECTS.engine_plan(worker.engine.spec.engine_id)
    await bus.publish(subject, b"RZ1\0garbage")
    await bus.publish(subject, wire.encode(m.StepPlan(worker.engine.spec.engine_id, "a.1", 0)))
    assert (await results.next()).seq == 0


async def test_a_draining_engine_says_so_and_finishes_the_plans_it_has() -> None:
    go_on = threading.Event()

    def act(plan: m.StepPlan) -> None:
        assert plan.seq == 0 or go_on.wait(20)

    bus = LocalBus()
    infos = await Inbox.on(bus, SUBJECTS.scheduler_engines("scheduler-0"), m.EngineInfo)
    results = await Inbox.on(bus, SUBJECTS.scheduler_result("a.1"), m.StepResult)
    worker = service(bus, act)
    await worker.start()
    engine_id = worker.engine.spec.engine_id
    for seq in (0, 1):
        await bus.publish(SUBJECTS.engine_plan(engine_id), wire.encode(m.StepPlan(engine_id, "a.1", seq)))
    assert (await results.next()).seq == 0
    await worker.actor.set_state("draining")
    drained = asyncio.create_task(worker.drain())
    await infos.next(lambda i: i.state == "draining")
    await bus.publish(SUBJECTS.engine_plan(engine_id), wire.encode(m.StepPlan(engine_id, "a.1", 2)))
    assert not drained.done()
    go_on.set()
    assert [(await results.next()).seq for _ in range(2)] == [1, 2]
    await asyncio.wait_for(drained, 20)


async def test_an_engine_that_never_served_drains_at_once() -> None:
    worker = service(LocalBus())
    await worker.start()
    await asyncio.wait_for(worker.drain(), 0.5)


TWO = dataclasses.replace(CONFIG, tp_size=2, dist_init_addr="127.0.0.1:1")


async def test_a_failed_plan_in_a_group_is_reported_and_ends_the_process_with_status_1(
    nats_bus: NatsBus, nats_url: str
) -> None:
    def act(plan: m.StepPlan) -> None:
        raise RuntimeError("connection closed by peer")

    infos = await Inbox.on(nats_bus, SUBJECTS.scheduler_engines("scheduler-0"), m.EngineInfo)
    faults = await Inbox.on(nats_bus, SUBJECTS.scheduler_fault("a.1"), m.EngineFault)
    own = await NatsBus.connect(nats_url, "worker")
    running = asyncio.create_task(serve(service(own, act, TWO, "worker-0-rank1-abc")))
    engine_id = (await infos.next()).engine_id
    await nats_bus.publish(SUBJECTS.engine_plan(engine_id), wire.encode(m.StepPlan(engine_id, "a.1", 0)))
    assert (await faults.next()).message == "RuntimeError: connection closed by peer"
    assert await asyncio.wait_for(running, 20) == 1


async def test_a_device_that_waits_for_ever_ends_the_process_of_a_group_with_status_1() -> None:
    gate = threading.Event()
    bus = LocalBus()
    infos = await Inbox.on(bus, SUBJECTS.scheduler_engines("scheduler-0"), m.EngineInfo)
    worker = service(bus, config=TWO, wait=lambda _: gate.wait(60), stall_timeout_s=STALL_TIMEOUT_S)
    running = asyncio.create_task(serve(worker))
    engine_id = (await infos.next()).engine_id
    await asyncio.sleep(2 * STALL_TIMEOUT_S)  # an idle group stays
    assert not running.done()
    await bus.publish(SUBJECTS.engine_plan(engine_id), wire.encode(m.StepPlan(engine_id, "a.1", 0)))
    assert await asyncio.wait_for(running, 20) == 1
    gate.set()


async def test_a_failed_launch_in_a_group_is_told_although_the_step_before_hangs() -> None:
    gate = threading.Event()

    def act(plan: m.StepPlan) -> None:
        if plan.seq == 1:
            raise RuntimeError("connection closed by peer")

    bus = LocalBus()
    infos = await Inbox.on(bus, SUBJECTS.scheduler_engines("scheduler-0"), m.EngineInfo)
    faults = await Inbox.on(bus, SUBJECTS.scheduler_fault("a.1"), m.EngineFault)
    running = asyncio.create_task(serve(service(bus, act, TWO, wait=lambda _: gate.wait(60))))
    engine_id = (await infos.next()).engine_id
    for seq in (0, 1):
        await bus.publish(SUBJECTS.engine_plan(engine_id), wire.encode(m.StepPlan(engine_id, "a.1", seq)))
    assert (await faults.next()).seq == 1
    assert await asyncio.wait_for(running, 20) == 1
    gate.set()


async def test_an_engine_is_announced_only_when_it_is_built_and_has_run() -> None:
    """`GET /ready` is true once the scheduler knows an engine (`tests/unit/gateway`): this is the first it can hear."""
    gate, building = threading.Event(), threading.Event()
    bus = LocalBus()
    infos = await Inbox.on(bus, SUBJECTS.scheduler_engines("scheduler-0"), m.EngineInfo)
    beats = await Inbox.on(bus, SUBJECTS.heartbeat, m.Heartbeat)

    def build() -> None:
        building.set()
        assert gate.wait(20)

    worker = service(bus, build_first=build)
    starting = asyncio.create_task(worker.start())
    assert await asyncio.to_thread(building.wait, 20)
    assert (await beats.next()).state == "starting"
    assert infos.empty
    gate.set()
    await starting
    assert (await infos.next()).state == "ready"
    assert (await beats.next(lambda beat: beat.state == "ready")).service == "worker"


async def test_the_loss_of_another_rank_ends_an_idle_process_with_status_1() -> None:
    bus = LocalBus()
    infos = await Inbox.on(bus, SUBJECTS.scheduler_engines("scheduler-0"), m.EngineInfo)
    running = asyncio.create_task(serve(service(bus, config=TWO, peer="worker-0-rank1-abc")))
    await infos.next()
    beat = m.Heartbeat("worker", "worker-0-rank1", "worker-0-rank1-abc", "ready", 1, "host", 1.0)
    await bus.publish(SUBJECTS.heartbeat, wire.encode(beat))
    bye = m.Goodbye("worker", "worker-0-rank1", "worker-0-rank1-abc", 2.0, "killed")
    await bus.publish(SUBJECTS.goodbye, wire.encode(bye))
    assert await asyncio.wait_for(running, 20) == 1


async def test_an_engine_that_cannot_be_built_is_a_start_up_error() -> None:
    def build(config: WorkerConfig, instance: str, _: log.Log) -> ScriptedEngine:
        raise ConfigError("no such model")

    actor = Actor("worker", CONFIG.common, LocalBus(), log.setup("worker", "error"))
    worker = WorkerService(actor, CONFIG, build)
    with pytest.raises(ConfigError, match="no such model"):
        await worker.start()


async def test_a_plan_that_waits_for_the_device_is_told_as_received_and_not_as_done(bus: Bus) -> None:
    gate = threading.Event()
    infos = await Inbox.on(bus, SUBJECTS.scheduler_engines("scheduler-0"), m.EngineInfo)
    worker = service(bus, lambda plan: gate.wait(20) if plan.seq == 1 else None)
    await worker.start()
    engine_id = worker.engine.spec.engine_id
    for seq in range(3):
        await bus.publish(SUBJECTS.engine_plan(engine_id), wire.encode(m.StepPlan(engine_id, "a.1", seq)))
    info = await infos.next(lambda i: i.received_seq == 2)
    assert (info.session, info.last_seq) == ("a.1", 0)
    gate.set()
    await infos.next(lambda i: i.last_seq == 2)


async def test_a_step_with_masked_rows_waits_for_its_masks(bus: Bus) -> None:
    results = await Inbox.on(bus, SUBJECTS.scheduler_result("a.1"), m.StepResult)
    worker = service(bus)
    await worker.start()
    engine_id = worker.actor.id

    def masks(*slots: int, first_row: int = 0) -> bytes:
        rows = np.arange(first_row, first_row + len(slots), dtype=np.int32)
        return wire.encode(m.StepMasks(engine_id, "a.1", 0, rows, np.array(slots, np.int32)))

    plan = m.StepPlan(engine_id, "a.1", 0, masked_rows=np.arange(3, dtype=np.int32))
    await bus.publish(SUBJECTS.engine_masks(engine_id), masks(5, 6))
    await bus.publish(SUBJECTS.engine_plan(engine_id), wire.encode(plan))
    await bus.publish(SUBJECTS.engine_masks(engine_id), masks(7, first_row=2))
    assert (await results.next()).tokens.tolist() == [5, 6, 7]
    await worker.actor.stop("done")

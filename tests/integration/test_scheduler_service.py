"""The scheduler service on the bus, between a scripted worker and a tokenizer that keeps the ids."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from services.scheduler.config import SchedulerConfig
from services.scheduler.service import SchedulerService
from shared import messages as m
from shared import wire
from shared.actor import Actor
from shared.bus import Bus
from shared.errors import ContextLengthExceeded, TooLarge, Unavailable
from shared.messages.generation import ABORTED, LENGTH
from tests.fakes.engine import expected_tokens
from tests.fakes.service_plane import Connection, Tokenizer, Worker, actor_on, kill, until

PROMPT = list(range(3, 43))


class Plane:
    """Starts instances on one bus and ends those that are left."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._actors: list[Actor] = []

    async def scheduler(self, **options: Any) -> SchedulerService:
        actor = actor_on(self.bus, "scheduler")
        self._actors.append(actor)
        service = SchedulerService(actor, SchedulerConfig(**options))
        await service.start()
        return service

    async def worker(self, name: str = "worker-0", **size: int) -> Worker:
        worker = Worker(self.bus, name, **size)
        self._actors.append(worker.actor)
        await worker.start()
        return worker

    async def tokenizer(self, name: str = "tokenizer-0") -> Tokenizer:
        tokenizer = Tokenizer(self.bus, name)
        self._actors.append(tokenizer.actor)
        await tokenizer.start()
        return tokenizer

    def refuse(self, subject: str) -> None:
        """Nothing can be sent on `subject` by those who are there now."""

        async def publish(to: str, data: bytes, reply: str = "") -> None:
            if to == subject:
                raise TooLarge("refused")
            await self.bus.publish(to, data, reply)

        for actor in self._actors:
            assert isinstance(actor.bus, Connection)
            actor.bus.publish = publish

    async def kill_scheduler(self) -> None:
        for actor in self._actors:
            if actor.service == "scheduler":
                await kill(actor)

    def subjects(self) -> set[str]:
        """What somebody listens to."""
        return {s for actor in self._actors if isinstance(actor.bus, Connection) for s in actor.bus.subjects}

    async def close(self) -> None:
        for actor in self._actors:
            await kill(actor)


@pytest.fixture
async def plane(bus: Bus) -> AsyncIterator[Plane]:
    plane = Plane(bus)
    yield plane
    await plane.close()


def idle(service: SchedulerService) -> bool:
    return service.scheduler.idle and service.scheduler.running_reqs == 0


async def test_requests_come_back_as_token_batches(plane: Plane) -> None:
    await plane.scheduler()
    await plane.worker()
    tokenizer = await plane.tokenizer()
    handles = await asyncio.gather(*(tokenizer.submit([3 + i, 4], 30) for i in range(8)))
    for i, handle in enumerate(handles):
        out = await tokenizer.finished(handle)
        assert (out.tokens, out.finish) == (expected_tokens([3 + i, 4], 30, 1000), LENGTH)


async def test_a_step_is_one_message_to_each_tokenizer(plane: Plane) -> None:
    await plane.scheduler(pipeline_depth=1)
    worker = await plane.worker()
    one, two = await plane.tokenizer("tokenizer-0"), await plane.tokenizer("tokenizer-1")
    worker.open.clear()
    first = await one.submit([9], 2)
    handles = [(t, await t.submit([3 + i], 10)) for i in range(4) for t in (one, two)]
    worker.open.set()
    for tokenizer, handle in [(one, first), *handles]:
        await tokenizer.finished(handle)
    assert len(one.batches) <= len(worker.plans)
    assert len(two.batches) == 10


async def test_a_request_that_came_before_the_first_engine_runs_when_one_is_there(plane: Plane) -> None:
    service = await plane.scheduler()
    tokenizer = await plane.tokenizer()
    handle = await tokenizer.submit(PROMPT, 5)
    assert service.scheduler.queue_reqs == 1
    await plane.worker()
    assert (await tokenizer.finished(handle)).tokens == expected_tokens(PROMPT, 5, 1000)


async def test_an_error_is_the_answer_to_the_request(plane: Plane) -> None:
    service = await plane.scheduler()
    await plane.worker(num_pages=20)
    tokenizer = await plane.tokenizer()
    await until(lambda: bool(service.scheduler.engines))
    with pytest.raises(ContextLengthExceeded, match="prompt of 40 tokens"):
        await tokenizer.submit(PROMPT, 5)


async def test_a_message_that_cannot_be_sent_costs_that_message_and_no_other(plane: Plane) -> None:
    service = await plane.scheduler()
    worker = await plane.worker()
    deaf, hears = await plane.tokenizer("tokenizer-0"), await plane.tokenizer("tokenizer-1")
    plane.refuse(deaf.actor.subjects.tokenizer_tokens(deaf.actor.id))
    worker.open.clear()
    for tokenizer in (deaf, hears):
        await tokenizer.submit(PROMPT, 1)
    worker.open.set()
    assert (await hears.finished(1)).tokens == expected_tokens(PROMPT, 1, 1000)
    await until(lambda: idle(service))
    assert deaf.batches == []


async def test_an_abort_ends_a_request_and_frees_its_row(plane: Plane) -> None:
    service = await plane.scheduler()
    worker = await plane.worker()
    tokenizer = await plane.tokenizer()
    handle = await tokenizer.submit(PROMPT, 400)
    await until(lambda: len(worker.plans) > 3)
    worker.open.clear()
    abort = m.AbortHandles(tokenizer_id=tokenizer.actor.id, handles=[handle])
    await tokenizer.actor.send(tokenizer.actor.subjects.scheduler_abort(service.scheduler.id), abort)
    assert (await tokenizer.finished(handle)).finish == ABORTED
    worker.open.set()
    await until(lambda: idle(service))


async def test_requests_of_a_tokenizer_that_is_gone_end(plane: Plane) -> None:
    service = await plane.scheduler()
    worker = await plane.worker()
    gone, stays = await plane.tokenizer("tokenizer-0"), await plane.tokenizer("tokenizer-1")
    worker.open.clear()
    await gone.submit([3], 400)
    handle = await stays.submit([4], 20)
    await gone.actor.stop("test")
    worker.open.set()
    assert (await stays.finished(handle)).tokens == expected_tokens([4], 20, 1000)
    await until(lambda: idle(service))
    assert service.scheduler.totals.aborted == 1


def stop_answering_after(worker: Worker, steps: int) -> None:
    """The worker executes and says nothing more."""
    execute = worker.engine.execute

    def answer(plan: m.StepPlan) -> m.StepResult | None:
        result = execute(plan)
        return result if worker.engine.steps <= steps else None

    worker.answer = answer


async def test_requests_survive_a_worker_that_is_killed_and_replaced(plane: Plane) -> None:
    service = await plane.scheduler()
    worker = await plane.worker()
    stop_answering_after(worker, 7)
    tokenizer = await plane.tokenizer()
    handles = [await tokenizer.submit([3 + i, *PROMPT], 25) for i in range(5)]
    await until(lambda: worker.engine.steps > 7)
    await kill(worker.actor)
    bye = m.Goodbye(service="worker", name="worker-0", id="", at_s=time.time(), reason="killed")
    await tokenizer.actor.send(tokenizer.actor.subjects.goodbye, bye)
    await until(lambda: not service.scheduler.engines)
    replacement = await plane.worker()
    for i, handle in enumerate(handles):
        assert (await tokenizer.finished(handle)).tokens == expected_tokens([3 + i, *PROMPT], 25, 1000)
    assert replacement.plans[0].seq == 0


async def test_a_replacement_is_enough_to_know_that_the_old_worker_is_gone(plane: Plane) -> None:
    await plane.scheduler()
    worker = await plane.worker()
    stop_answering_after(worker, 4)
    tokenizer = await plane.tokenizer()
    handle = await tokenizer.submit(PROMPT, 20)
    await until(lambda: worker.engine.steps > 4)
    await kill(worker.actor)
    await plane.worker()
    assert (await tokenizer.finished(handle)).tokens == expected_tokens(PROMPT, 20, 1000)


def fault_once(worker: Worker, seq: int, what: Callable[[m.StepPlan], m.EngineFault | None]) -> None:
    """At plan `seq` of its first session the engine is dead until another session begins."""
    execute, session = worker.engine.execute, None

    def answer(plan: m.StepPlan) -> m.StepResult | m.EngineFault | None:
        nonlocal session
        session = session or plan.session
        if plan.session != session or plan.seq < seq:
            return execute(plan)
        return what(plan) if plan.seq == seq else None

    worker.answer = answer


async def test_a_fault_begins_a_new_session_and_no_token_is_lost(plane: Plane) -> None:
    service = await plane.scheduler()
    worker = await plane.worker()
    fault_once(worker, 6, lambda p: m.EngineFault(p.engine_id, p.session, p.seq, "gap", "plan 6 came after 4"))
    tokenizer = await plane.tokenizer()
    handles = [await tokenizer.submit([3 + i, *PROMPT], 25) for i in range(5)]
    for i, handle in enumerate(handles):
        assert (await tokenizer.finished(handle)).tokens == expected_tokens([3 + i, *PROMPT], 25, 1000)
    assert len({p.session for p in worker.plans}) == 2
    assert all(p.session.startswith(f"{service.scheduler.id}.") for p in worker.plans)


async def test_a_lost_result_begins_a_new_session_and_no_token_is_lost(plane: Plane) -> None:
    await plane.scheduler()
    worker = await plane.worker()
    execute = worker.engine.execute

    def lose_one(plan: m.StepPlan) -> m.StepResult | None:
        result = execute(plan)
        return None if worker.engine.steps == 5 else result

    worker.answer = lose_one
    tokenizer = await plane.tokenizer()
    handle = await tokenizer.submit(PROMPT, 20)
    assert (await tokenizer.finished(handle)).tokens == expected_tokens(PROMPT, 20, 1000)
    assert len({p.session for p in worker.plans}) == 2


async def test_a_draining_worker_hands_its_requests_to_another(plane: Plane) -> None:
    service = await plane.scheduler()
    leaving = await plane.worker("worker-0")
    tokenizer = await plane.tokenizer()
    handle = await tokenizer.submit(PROMPT, 200)
    await until(lambda: len(leaving.plans) > 3)
    staying = await plane.worker("worker-1")
    await until(lambda: len(service.scheduler.engines) == 2)
    leaving.open.clear()
    leaving.info = dataclasses.replace(leaving.info, state="draining")
    assert (await tokenizer.finished(handle)).tokens == expected_tokens(PROMPT, 200, 1000)
    assert staying.plans
    assert list(service.scheduler.engines) == [staying.info.engine_id]


async def test_a_restarted_scheduler_takes_over_a_worker_that_runs(plane: Plane) -> None:
    first = await plane.scheduler()
    worker = await plane.worker()
    tokenizer = await plane.tokenizer()
    await tokenizer.submit(PROMPT, 300)
    await until(lambda: len(worker.plans) > 5)
    await plane.kill_scheduler()
    second = await plane.scheduler()
    await until(lambda: bool(second.scheduler.engines))
    handle = await tokenizer.submit(PROMPT, 10)
    assert (await tokenizer.finished(handle)).tokens == expected_tokens(PROMPT, 10, 1000)
    assert {p.session.rsplit(".", 1)[0] for p in worker.plans} == {first.scheduler.id, second.scheduler.id}


async def test_a_drain_finishes_what_runs_and_takes_nothing_new(plane: Plane) -> None:
    service = await plane.scheduler()
    worker = await plane.worker(max_rows=1)
    tokenizer = await plane.tokenizer()
    worker.open.clear()
    handles = [await tokenizer.submit([3 + i], 10) for i in range(3)]
    drained = asyncio.ensure_future(service.drain())
    await until(lambda: tokenizer.actor.subjects.schedule not in plane.subjects())
    with pytest.raises(Unavailable):
        await tokenizer.submit([9], 1)
    assert not drained.done()
    worker.open.set()
    async with asyncio.timeout(20):
        await drained
    for i, handle in enumerate(handles):
        assert (await tokenizer.finished(handle)).tokens == expected_tokens([3 + i], 10, 1000)


async def test_a_drain_without_work_returns_at_once(plane: Plane) -> None:
    service = await plane.scheduler()
    async with asyncio.timeout(20):
        await service.drain()


async def test_info_and_flush_answer(plane: Plane) -> None:
    service = await plane.scheduler()
    await plane.worker(num_pages=500)
    tokenizer = await plane.tokenizer()
    await tokenizer.finished(await tokenizer.submit(PROMPT, 5))
    await until(lambda: idle(service))
    subjects = tokenizer.actor.subjects
    info = await tokenizer.actor.ask(subjects.scheduler_info(service.scheduler.id), m.Empty(), m.SchedulerInfo)
    assert (info.requests_total, info.prompt_tokens_total, info.generation_tokens_total) == (1, 40, 5)
    stats = info.engines[0]
    assert (stats.free_pages, stats.evictable_pages, stats.private_pages) == (456, 44, 0)
    assert info.step_ms["publish"] > 0
    flushed = await tokenizer.actor.ask(subjects.scheduler_flush(service.scheduler.id), m.Empty(), m.Flushed)
    assert (flushed.released_pages, flushed.held_pages) == (44, 0)


async def test_metrics_can_be_scraped_over_the_bus(plane: Plane) -> None:
    service = await plane.scheduler()
    await plane.worker()
    tokenizer = await plane.tokenizer()
    await tokenizer.finished(await tokenizer.submit(PROMPT, 5))
    await until(lambda: idle(service))
    answers = await plane.bus.gather(tokenizer.actor.subjects.metrics, wire.encode(m.Empty()), most=3, timeout_s=10)
    text = next(t.text for a in answers if (t := wire.decode(m.MetricsText, a)).service == "scheduler")
    assert "\nrhizome_prompt_tokens_total 40.0\n" in text
    assert "\nrhizome_num_running_reqs 0.0\n" in text


async def test_cache_events_are_published_when_asked_for(plane: Plane) -> None:
    service = await plane.scheduler(enable_kv_events=True)
    worker = await plane.worker()
    tokenizer = await plane.tokenizer()
    subjects = tokenizer.actor.subjects
    events: list[m.KvEvents] = []
    await tokenizer.actor.on(subjects.kv_events(worker.info.engine_id), m.KvEvents, events.append)
    await plane.bus.flush()
    await tokenizer.finished(await tokenizer.submit(PROMPT, 3))
    await until(lambda: idle(service))
    await until(lambda: sum(len(e.stored) for e in events) == 42)
    assert [t for e in events for block in e.stored for t in block.token_ids][:40] == PROMPT
    await tokenizer.actor.ask(subjects.scheduler_flush(service.scheduler.id), m.Empty(), m.Flushed)
    await until(lambda: events[-1].cleared)
    assert [e.seq for e in events] == list(range(events[0].seq, events[0].seq + len(events)))


async def test_heartbeats_tell_how_many_engines_are_ready(plane: Plane) -> None:
    service = await plane.scheduler()
    tokenizer = await plane.tokenizer()
    beats: list[m.Heartbeat] = []
    await tokenizer.actor.on(tokenizer.actor.subjects.heartbeat, m.Heartbeat, beats.append)
    await plane.bus.flush()
    await plane.worker()
    await until(lambda: any(b.id == service.scheduler.id and b.engines_ready == 1 for b in beats))


async def test_an_answer_that_makes_no_sense_costs_the_session_and_not_the_service(plane: Plane) -> None:
    service = await plane.scheduler()
    worker = await plane.worker()
    tokenizer = await plane.tokenizer()
    handle = await tokenizer.submit(PROMPT, 300)
    await until(lambda: len(worker.plans) > 3)
    worker.open.clear()
    session = worker.plans[-1].session
    stray = m.StepResult(worker.info.engine_id, session, seq=0, tokens=np.zeros(1, np.int32))
    for nonsense in (b"nonsense", b"{}", wire.encode(stray)):
        await plane.bus.publish(tokenizer.actor.subjects.scheduler_result(session), nonsense)
    await until(lambda: service.scheduler.by_session(session) is None)
    worker.open.set()
    assert (await tokenizer.finished(handle)).tokens == expected_tokens(PROMPT, 300, 1000)
    assert len({p.session for p in worker.plans}) == 2
    assert service.scheduler.idle

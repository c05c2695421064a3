"""The scheduler on the bus: messages in, plans and token batches out.

Everything is decided in `Scheduler`; this file only carries. Messages leave in the order in which they were made,
whatever handler made them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from services.scheduler.config import SchedulerConfig
from services.scheduler.grammars import Grammars
from services.scheduler.metrics import SchedulerMetrics
from services.scheduler.request import Req
from services.scheduler.scheduler import Scheduler
from shared import messages as m
from shared.actor import LIVENESS_TIMEOUT_S, Actor
from shared.errors import RhizomeError, Unavailable
from shared.grammar import GrammarSpec
from shared.peers import Peers

TICK_S = 1.0


class SchedulerService:
    """Binds a `Scheduler` to the bus. Lives as long as the process."""

    def __init__(self, actor: Actor, config: SchedulerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._actor = actor
        self._config = config
        self.scheduler = Scheduler(actor.id, config, actor.log, clock)
        self._metrics = SchedulerMetrics(self.scheduler, actor.registry)
        self._peers = Peers(self._peer_lost)
        self._grammars = Grammars(config)
        self._out: deque[tuple[str, Any]] = deque()
        self._sending = False
        self._pump_due = False
        self._sessions = 0
        self._idle = asyncio.Event()
        """No request is left, and everything was said."""

    async def start(self) -> None:
        """Subscribe, announce, be ready."""
        self.scheduler.aside.wake = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, self._pump_soon)
        actor, subjects = self._actor, self._actor.subjects
        await actor.on(subjects.scheduler_result(f"{actor.id}.*"), m.StepResult, self._on_step_result)
        await actor.on(subjects.scheduler_fault(f"{actor.id}.*"), m.EngineFault, self._on_fault)
        await actor.on(subjects.scheduler_media(f"{actor.id}.*"), m.MediaStaged, self._on_staged)
        await actor.on(subjects.scheduler_abort(actor.id), m.AbortHandles, self._on_abort)
        await actor.serve(subjects.scheduler_info(actor.id), m.Empty, self._on_info)
        await actor.serve(subjects.scheduler_flush(actor.id), m.Empty, self._on_flush)
        await actor.serve(subjects.schedule, m.TokenizedRequest, self._on_request, queue="scheduler")
        await actor.on(subjects.scheduler_engines(actor.name), m.EngineInfo, self._on_engine)
        await self._peers.attach(actor)
        await actor.on(subjects.goodbye, m.Goodbye, self._on_goodbye)
        await actor.start()
        await actor.set_state("ready")
        actor.spawn(self._tick_forever())

    async def drain(self) -> None:
        """Take no more requests and finish those that there are; the actor bounds the time."""
        await self._actor.leave_queues()
        await self._pump()
        await self._idle.wait()
        await self._grammars.close()
        self.scheduler.aside.close()

    async def _on_request(self, msg: m.TokenizedRequest) -> m.Queued:
        req, queued = self.scheduler.submit(msg)
        if req.grammar is not None:
            self._actor.spawn(self._compile(req, req.grammar))
        self._pump_soon()
        return queued

    async def _compile(self, req: Req, spec: GrammarSpec) -> None:
        try:
            self.scheduler.compiled(req, await self._grammars.compile(spec))
        except RhizomeError as fault:
            self.scheduler.compiled(req, fault)
        self._pump_soon()

    async def _on_abort(self, msg: m.AbortHandles) -> None:
        self.scheduler.abort(msg)
        await self._pump()

    async def _on_step_result(self, result: m.StepResult) -> None:
        try:
            self.scheduler.apply(result)
        finally:
            await self._pump()

    async def _on_staged(self, answer: m.MediaStaged) -> None:
        self.scheduler.staged(answer)
        await self._pump()

    async def _on_fault(self, fault: m.EngineFault) -> None:
        engine = self.scheduler.by_session(fault.session)
        if engine is not None:
            self.scheduler.close(engine, f"{fault.reason} at step {fault.seq}: {fault.message}")
            await self._pump()

    async def _on_engine(self, info: m.EngineInfo) -> None:
        """An engine announces itself; a new one, or one whose session ended, gets a session."""
        if info.engine_id in self.scheduler.engines:
            self.scheduler.heard(info)
        if info.engine_id not in self.scheduler.engines and info.state == "ready":
            self.scheduler.open(info, f"{self._actor.id}.{self._sessions}")
            self._sessions += 1
        await self._tell_engines()
        await self._pump()

    async def _on_goodbye(self, bye: m.Goodbye) -> None:
        if bye.service == "worker":
            self.scheduler.engine_left(bye)
            await self._tell_engines()
            await self._pump()

    def _peer_lost(self, beat: m.Heartbeat, reason: str) -> None:
        if beat.service == "tokenizer":
            self._actor.log.warning("tokenizer lost", tokenizer=beat.id, reason=reason)
            self.scheduler.tokenizer_lost(beat.id)
            self._pump_soon()

    async def _on_info(self, _: m.Empty) -> m.SchedulerInfo:
        return self.scheduler.info()

    async def _on_flush(self, _: m.Empty) -> m.Flushed:
        return self.scheduler.flush()

    async def _tell_engines(self) -> None:
        ready = sum(e.info.state == "ready" for e in self.scheduler.engines.values())
        if ready != self._actor.engines_ready:
            self._actor.engines_ready = ready
            await self._actor.beat()

    async def _tick_forever(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_S)
            if time.monotonic() - before < 5 * TICK_S:  # after a stall of our own, hear first who is alive
                with contextlib.suppress(Unavailable):  # the bus is down and its buffer full: the next tick may pass
                    await self.tick()

    async def tick(self) -> None:
        """What has to happen because time has passed; once a second."""
        self.scheduler.tick(LIVENESS_TIMEOUT_S)
        await self._tell_engines()
        await self._pump()

    def _pump_soon(self) -> None:
        """Pump after the handlers that are ready to run: requests that came together start together."""
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._start_pump)

    def _start_pump(self) -> None:
        self._pump_due = False
        self._actor.spawn(self._pump())

    async def _pump(self) -> None:
        """[walk 6] Send every plan that can be sent and all that there is to tell."""
        scheduler, subjects = self.scheduler, self._actor.subjects
        self._idle.clear()
        # Plans first: what they want staged is found while they are made, and what they drop is told by them.
        for engine_id, plan in scheduler.plans():
            self._out.append((subjects.engine_plan(engine_id), plan))
        for engine_id, ask in scheduler.stagings():
            self._out.append((subjects.engine_media(engine_id), ask))
        for engine_id, masks in scheduler.masks():
            self._out.append((subjects.engine_masks(engine_id), masks))
        for tokenizer_id, batch in scheduler.outbox.take():
            self._out.append((subjects.tokenizer_tokens(tokenizer_id), batch))
        for engine in scheduler.engines.values():
            while engine.kv_log is not None and (events := engine.kv_log.take()) is not None:
                self._out.append((subjects.kv_events(engine.info.engine_id), events))
        if self._sending:
            return  # the call that is sending takes these along
        self._sending = True
        try:
            while self._out:
                subject, msg = self._out.popleft()
                with scheduler.stages.measure("publish"):
                    await self._actor.send(subject, msg)
        finally:
            self._sending = False
            if self._out:  # one message could not be sent; the others can
                self._pump_soon()
        if scheduler.idle:
            self._idle.set()

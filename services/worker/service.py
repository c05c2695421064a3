"""[walk 7] The worker on the bus: plans in, results out, and the life of a rank.

The event loop only moves messages. One device thread, a single-worker executor, builds the engine and launches plans
in order of arrival; another one waits for the device, so that a step is launched while the one before is computed.
Results come back to the loop, which publishes them. Rank 0 answers and announces the engine; every rank subscribes to
the engine's plans and may report a fault.

When a tensor-parallel group cannot go on (a rank died, ranks did not meet within the group's timeout, or one failed in
the middle of a plan so that the others wait in a collective), every rank exits with status 1: gloo ends the others'
collectives, goodbyes and silence end idle ranks, and a rank whose device waits for one that is gone is ended when it
has finished nothing for the group's timeout. No thread that hangs is joined (`__main__.py`). The supervisor restarts
all ranks, which form a new engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from prometheus_client import Counter, Gauge, Histogram

from services.worker.config import GROUP_TIMEOUT_S, WorkerConfig
from services.worker.engine_spec import EngineSpec
from services.worker.mask_inbox import MaskInbox
from services.worker.progress import Progress
from shared import messages as m
from shared.actor import HEARTBEAT_S, Actor
from shared.embedding_file import map_rows, rows_in
from shared.errors import MediaLost, NotFound, Unavailable
from shared.log import Log
from shared.peers import Peers

SHARE_TIMEOUT_S = 20.0
DRAIN_QUIET_S = 1.0
"""A draining engine that got no plan for this long has nothing left to do."""
_STAGES = ("queued", "prepare", "forward", "mask_wait", "sample")


class LaunchedLike(Protocol):
    """A step under way (`launched.py`)."""

    def finish(self) -> m.StepResult: ...


class MediaStoreLike(Protocol):
    """Where embeddings of images and videos are kept (`media_store.py`)."""

    def has(self, session: str, slot: int) -> bool: ...
    def stage(self, session: str, slot: int, rows: npt.NDArray[np.uint8], dtype: str) -> None: ...


class EngineLike(Protocol):
    """What the service needs of an engine (`engine.py`)."""

    spec: EngineSpec
    session: str
    masks: MaskInbox

    @property
    def media(self) -> MediaStoreLike: ...
    @property
    def is_first(self) -> bool: ...
    def launch(self, plan: m.StepPlan, arrived_s: float | None = None) -> LaunchedLike | m.EngineFault | None: ...
    def fail(self, plan: m.StepPlan, message: str) -> m.EngineFault: ...
    def meet(self) -> None: ...
    def memory_bytes(self) -> int: ...


class WorkerService:
    """One rank. Lives as long as the process."""

    def __init__(
        self,
        actor: Actor,
        config: WorkerConfig,
        build: Callable[[WorkerConfig, str, Log], EngineLike],
        stall_timeout_s: float = GROUP_TIMEOUT_S,
    ) -> None:
        """
        Args:
            build: makes the engine, on the device thread, from the configuration and this instance's id.
            stall_timeout_s: a group in which no plan is finished for so long, although there are some, is broken.
        """
        self.actor = actor
        self._config, self._build = config, build
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._results = ThreadPoolExecutor(max_workers=1, thread_name_prefix="results")
        self._staging = ThreadPoolExecutor(max_workers=1, thread_name_prefix="media")
        self._engine: EngineLike | None = None
        self._progress = Progress()
        self._stall_timeout_s = stall_timeout_s
        self._unanswered = 0
        self._broken = False
        """The process is about to end."""
        self._moved_s = 0.0
        """When a plan was last finished, or came while there was none."""
        self._plan_came = asyncio.Event()
        registry = self.actor.registry
        self._steps = Counter("rhizome_worker_steps", "Plans executed", registry=registry)
        self._tokens = Counter("rhizome_worker_sampled_tokens", "Tokens sampled", registry=registry)
        self._faults = Counter("rhizome_worker_faults", "Sessions ended by this rank", ["reason"], registry=registry)
        self._seconds = Histogram(
            "rhizome_worker_step_seconds", "Time of a step by stage", ["stage"], registry=registry
        )
        self._memory = Gauge("rhizome_worker_memory_bytes", "Memory of this rank", registry=registry)

    @property
    def engine(self) -> EngineLike:
        assert self._engine is not None
        return self._engine

    async def start(self) -> None:
        """Build the engine, subscribe, and announce it once every rank listens.

        Raises:
            ConfigError: the engine cannot be built.
        """
        await self.actor.start()
        loop = asyncio.get_running_loop()
        started_s = time.perf_counter()
        self._engine = await loop.run_in_executor(
            self._device, self._build, self._config, self.actor.id, self.actor.log
        )
        spec = self.engine.spec
        await self.actor.on(self.actor.subjects.engine_plan(spec.engine_id), m.StepPlan, self._on_plan)
        if self.engine.is_first:
            await self.actor.on(self.actor.subjects.engine_masks(spec.engine_id), m.StepMasks, self.engine.masks.put)
        if spec.media_bytes:
            await self.actor.on(self.actor.subjects.engine_media(spec.engine_id), m.StageMedia, self._on_media)
        if spec.tp_size > 1:
            await Peers(self._on_lost).attach(self.actor)
            self.actor.spawn(self._watch_forever())
        await self.actor.bus.flush()
        await loop.run_in_executor(self._device, self.engine.meet)
        await self.actor.set_state("ready")
        self.actor.log.info("engine", **_shown(spec), seconds=time.perf_counter() - started_s)
        if self.engine.is_first:
            self.actor.spawn(self._announce_forever())

    async def drain(self) -> None:
        """Tell the scheduler, then execute what still comes until it is quiet."""
        if self.engine.is_first:
            await self._announce()
        while self._unanswered or self.engine.session:
            self._plan_came.clear()
            try:
                await asyncio.wait_for(self._plan_came.wait(), DRAIN_QUIET_S)
            except TimeoutError:
                if not self._unanswered:
                    return

    def _on_plan(self, plan: m.StepPlan) -> None:
        if self.actor.quitting:
            return
        self._progress.received(plan)
        if plan.seq == 0:
            self.engine.masks.begin(plan.session)
        if not self._unanswered:
            self._moved_s = time.monotonic()
        self._unanswered += 1
        self._plan_came.set()
        loop = asyncio.get_running_loop()
        launched = self._device.submit(self.engine.launch, plan, time.perf_counter())
        if self.engine.spec.tp_size > 1:
            launched.add_done_callback(lambda done: loop.call_soon_threadsafe(self._launched, plan, done))
        finished = self._results.submit(_finish, launched)
        finished.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finished, plan, done))

    def _on_media(self, ask: m.StageMedia) -> None:
        if not self.actor.quitting:
            self.actor.spawn(self._stage(ask))

    async def _stage(self, ask: m.StageMedia) -> None:
        """Have embeddings at hand, and say which ones are."""
        ready: list[int] = []
        missing: list[int] = []
        for slot, ref in zip(ask.slots, ask.refs, strict=False):
            try:
                if not self.engine.media.has(ask.session, slot):
                    await self._fetch(ask.session, slot, ref)
                ready.append(slot)
            except MediaLost as fault:
                self.actor.log.warning("media missing", key=ref.key, vision=ref.vision_id, reason=fault.message)
                missing.append(slot)
        answer = m.MediaStaged(ask.engine_id, ask.session, self._config.tp_rank, ready, missing)
        await self.actor.send(self.actor.subjects.scheduler_media(ask.session), answer)

    async def _fetch(self, session: str, slot: int, ref: m.EmbeddingRef) -> None:
        """From shared memory, else through the object store.

        Raises:
            MediaLost: nobody has them.
        """
        loop, media = asyncio.get_running_loop(), self.engine.media
        try:
            await loop.run_in_executor(self._staging, lambda: media.stage(session, slot, map_rows(ref), ref.dtype))
            return
        except MediaLost:
            pass  # another host's, or gone
        subject = self.actor.subjects.vision_share(ref.vision_id)
        try:
            shared = await self.actor.ask(subject, m.ShareEmbedding(ref.key), m.EmbeddingShared, SHARE_TIMEOUT_S)
            data = await self.actor.bus.get_object(shared.bucket, shared.name)
            rows = rows_in(data, ref)
        except (Unavailable, NotFound) as fault:
            raise MediaLost(f"neither in shared memory nor from {ref.vision_id}: {fault}") from fault
        await loop.run_in_executor(self._staging, media.stage, session, slot, rows, ref.dtype)

    def _launched(self, plan: m.StepPlan, done: Future[LaunchedLike | m.EngineFault | None]) -> None:
        """On the loop, in a group: a failure ends the process even while a step before it waits for a rank for ever."""
        failure = done.exception()
        if failure is not None:
            self._failed(plan, failure)

    def _finished(self, plan: m.StepPlan, done: Future[m.StepResult | m.EngineFault | None]) -> None:
        """On the loop: publish what a plan came to. A failure ends the session, in a group the process."""
        self._unanswered -= 1
        self._moved_s = time.monotonic()
        self._progress.done(plan)
        failure = done.exception()
        if failure is None:
            self.actor.spawn(self._publish(done.result(), fatal=False))
        else:
            self._failed(plan, failure)

    def _failed(self, plan: m.StepPlan, failure: BaseException) -> None:
        in_group = self.engine.spec.tp_size > 1
        if in_group and self._broken:
            return
        self._broken = in_group
        self.actor.log.error("plan failed", fault=failure, session=plan.session, seq=plan.seq)
        outcome = self.engine.fail(plan, f"{type(failure).__name__}: {failure}"[:1000])
        self.actor.spawn(self._publish(outcome, fatal=in_group))

    async def _publish(self, outcome: m.StepResult | m.EngineFault | None, *, fatal: bool) -> None:
        subjects = self.actor.subjects
        if isinstance(outcome, m.StepResult):
            self._count(outcome)
            await self.actor.send(subjects.scheduler_result(outcome.session), outcome)
        elif outcome is not None:
            self._faults.labels(outcome.reason).inc()
            self.actor.log.warning("session over", reason=outcome.reason, message=outcome.message, seq=outcome.seq)
            await self.actor.send(subjects.scheduler_fault(outcome.session), outcome)
        if fatal:
            await self.actor.bus.flush()
            self.actor.quit("its group is broken")

    def _count(self, result: m.StepResult) -> None:
        self._steps.inc()
        self._tokens.inc(len(result.tokens))
        for stage in _STAGES:
            self._seconds.labels(stage).observe(getattr(result.timing, f"{stage}_ms") / 1e3)

    def _on_lost(self, beat: m.Heartbeat, reason: str) -> None:
        if beat.id in self.engine.spec.group and beat.id != self.actor.id and self.actor.state != "draining":
            self.actor.log.error("rank lost", rank=self.engine.spec.group.index(beat.id), lost=beat.id, reason=reason)
            self.actor.quit("its group is broken")

    async def _watch_forever(self) -> None:
        """End the process when its device, or the thread that launches, waits for a rank that will not come."""
        while True:
            await asyncio.sleep(min(HEARTBEAT_S, self._stall_timeout_s))
            stalled_s = time.monotonic() - self._moved_s
            if self._unanswered and stalled_s > self._stall_timeout_s:
                self.actor.log.error("no plan finished", unanswered=self._unanswered, seconds=stalled_s)
                self.actor.quit("its group is broken")
                return

    async def _announce_forever(self) -> None:
        while True:
            await self._announce()
            await asyncio.sleep(HEARTBEAT_S)

    async def _announce(self) -> None:
        spec, memory_bytes = self.engine.spec, self.engine.memory_bytes()
        self._memory.set(memory_bytes)
        info = m.EngineInfo(
            engine_id=spec.engine_id, name=self.actor.name, state=self.actor.state, model=spec.model,
            tp_size=spec.tp_size, device=spec.device, dtype=spec.dtype, attention_backend=spec.attention_backend,
            page_size=spec.page_size, num_pages=spec.num_pages, max_rows=spec.max_rows,
            context_length=spec.context_length, vocab_size=spec.vocab_size, prefill_tokens=spec.prefill_tokens,
            mask_slots=spec.mask_slots, media_bytes=spec.media_bytes,
            session=self._progress.session, received_seq=self._progress.received_seq,
            last_seq=self._progress.last_seq, memory_bytes=memory_bytes,
        )  # fmt: skip
        await self.actor.send(self.actor.subjects.scheduler_engines(self._config.scheduler_name), info)


def _finish(launching: Future[LaunchedLike | m.EngineFault | None]) -> m.StepResult | m.EngineFault | None:
    """On the results thread: wait for the launch, then for the device."""
    launched = launching.result()
    return launched if launched is None or isinstance(launched, m.EngineFault) else launched.finish()


def _shown(spec: EngineSpec) -> dict[str, Any]:
    return {
        "model": spec.model, "device": spec.device, "dtype": spec.dtype, "attention": spec.attention_backend,
        "tp_size": spec.tp_size,
        "pages": spec.num_pages, "page_size": spec.page_size, "context": spec.context_length,
    }  # fmt: skip

"""Vision on the bus: the only module of this service that sends or receives.

A demand is accepted at once and answered when all of its images and videos are encoded, or with what is wrong with the
first bad one. Embeddings stay in shared memory; a rank that cannot see it asks for them in the object store (`share`).
Demands of a tokenizer that is gone are dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from services.vision.batcher import Batcher
from services.vision.cache import EmbeddingCache
from services.vision.pipeline import Pipeline
from shared import messages as m
from shared import wire
from shared.actor import Actor
from shared.blobs import Blobs
from shared.errors import InvalidRequest, Overloaded, RhizomeError, TooLarge, Unavailable
from shared.held_folder import HeldFolder
from shared.peers import Peers

QUEUE_GROUP = "vision"
SHARED_TTL_S = 60.0
TICK_S = 10.0
"""Often enough that a held folder never counts as abandoned."""
_Demand = tuple[str, int]
"""(tokenizer id, its handle)"""


class VisionService:
    """One instance. `start` makes it known to the others, `drain` ends it gently."""

    def __init__(
        self, actor: Actor, pipeline: Pipeline, batcher: Batcher, cache: EmbeddingCache, blobs: Blobs,
        memory: HeldFolder, own: HeldFolder, sweep: Callable[[], object], max_media_per_request: int,
        max_queued_media: int, deployment: str, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """
        Args:
            memory: the deployment's folder in shared memory.
            own: this instance's folder in it, where the cache is.
            sweep: removes what other processes left there. Blocks.
        """
        self._actor, self._pipeline, self._batcher, self._cache = actor, pipeline, batcher, cache
        self._blobs, self._memory, self._own, self._sweep = blobs, memory, own, sweep
        self._max_media_per_request, self._max_queued_media = max_media_per_request, max_queued_media
        self._bucket = f"rz-{deployment}-embeddings"
        self._clock = clock
        self._demands: dict[_Demand, asyncio.Task[None]] = {}
        self._queued = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._sharing = asyncio.Lock()
        self._shared_s: dict[str, float] = {}
        self._peers = Peers(self._peer_lost)

    @property
    def queued_media(self) -> int:
        """Images and videos in work or waiting."""
        return self._queued

    async def start(self) -> None:
        """Subscribe, announce, be ready."""
        actor, subjects = self._actor, self._actor.subjects
        actor.facts = m.ServiceFacts(created_s=int(time.time()), memory=self._blobs.host)
        await self._peers.attach(actor)
        await actor.on(subjects.vision_cancel(actor.id), m.CancelEncode, self._cancel)
        await actor.serve(subjects.vision_share(actor.id), m.ShareEmbedding, self._share)
        await actor.serve(subjects.encode_media, m.EncodeMedia, self._accept, QUEUE_GROUP)
        actor.spawn(self._batcher.run())
        await actor.start()
        actor.spawn(self._tick_forever())
        await actor.set_state("ready")

    async def drain(self) -> None:
        """Take no new demands and return when the running ones are answered; when cancelled, tell who asked."""
        try:
            await self._actor.leave_queues()
            await self._idle.wait()
        finally:
            error = m.ErrorInfo(Unavailable.code, "the vision service was shut down: send the request again")
            for (tokenizer_id, handle), task in list(self._demands.items()):
                task.cancel()
                await self._answer(tokenizer_id, m.MediaEncoded(self._actor.id, handle, error=error))
            self._own.remove()
            self._memory.remove()

    async def _accept(self, demand: m.EncodeMedia) -> m.EncodeAccepted:
        count, key = len(demand.sources), (demand.tokenizer_id, demand.handle)
        if not 1 <= count <= self._max_media_per_request:
            raise InvalidRequest(
                f"{count} images and videos in one request; 1 to {self._max_media_per_request} are taken "
                "(--max-media-per-request)"
            )
        if key not in self._demands:  # else it is asked again: the answer to the first asking will do
            if self._queued + count > self._max_queued_media:
                raise Overloaded(f"{self._queued} images and videos are waiting already: try again")
            self._queued += count
            self._idle.clear()
            self._demands[key] = self._actor.spawn(self._work(demand))
        return m.EncodeAccepted(self._actor.id)

    async def _work(self, demand: m.EncodeMedia) -> None:
        """Encode all media of a demand at the same time; the first that fails ends it."""
        try:
            async with AsyncExitStack() as pinned:
                tasks = [
                    asyncio.ensure_future(pinned.enter_async_context(self._pipeline.encoded(source)))
                    for source in demand.sources
                ]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                finally:
                    for task in tasks:
                        task.cancel()
                    results = await asyncio.gather(*tasks, return_exceptions=True)
                await self._answer(demand.tokenizer_id, self._outcome(demand, results))
        finally:
            self._demands.pop((demand.tokenizer_id, demand.handle), None)
            self._queued -= len(demand.sources)
            if not self._demands:
                self._idle.set()

    def _outcome(self, demand: m.EncodeMedia, results: list[m.EncodedMedia | BaseException]) -> m.MediaEncoded:
        media = [result for result in results if isinstance(result, m.EncodedMedia)]
        if len(media) == len(results):
            return m.MediaEncoded(self._actor.id, demand.handle, media)
        faults = [
            result
            for result in results
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError)
        ]
        error = self._error(faults[0] if faults else Unavailable("encoding was given up: send the request again"))
        return m.MediaEncoded(self._actor.id, demand.handle, error=error)

    def _error(self, fault: BaseException) -> m.ErrorInfo:
        if isinstance(fault, RhizomeError):
            return m.ErrorInfo(fault.code, fault.message, fault.param)
        self._actor.log.error("encoding failed", fault=fault)
        return m.ErrorInfo(RhizomeError.code, f"vision failed on an image or video: {type(fault).__name__}")

    async def _answer(self, tokenizer_id: str, answer: m.MediaEncoded) -> None:
        subject = self._actor.subjects.tokenizer_media(tokenizer_id)
        try:
            data = wire.encode(answer)
        except TooLarge as fault:
            error = m.ErrorInfo(InvalidRequest.code, f"too much media in one request: {fault.message}")
            data = wire.encode(m.MediaEncoded(answer.vision_id, answer.handle, error=error))
        await self._actor.bus.publish(subject, data)

    def _cancel(self, cancel: m.CancelEncode) -> None:
        task = self._demands.get((cancel.tokenizer_id, cancel.handle))
        if task is not None:
            task.cancel()

    async def _share(self, request: m.ShareEmbedding) -> m.EmbeddingShared:
        """A rank on another host cannot see the file: put it where the rank can read it."""
        async with self._sharing:  # all ranks of an engine ask at once; an object is not replaced while it is read
            now_s = self._clock()
            self._shared_s = {key: at for key, at in self._shared_s.items() if now_s - at < SHARED_TTL_S / 2}
            if request.key not in self._shared_s:
                data = await asyncio.to_thread(self._cache.read_file, request.key)
                await self._actor.bus.put_object(self._bucket, request.key, data, SHARED_TTL_S)
                self._shared_s[request.key] = now_s
        return m.EmbeddingShared(self._bucket, request.key)

    def _peer_lost(self, beat: m.Heartbeat, reason: str) -> None:
        if beat.service == "tokenizer":
            for (tokenizer_id, _), task in list(self._demands.items()):
                if tokenizer_id == beat.id:
                    task.cancel()

    async def _tick_forever(self) -> None:
        while True:
            self._memory.touch()
            self._own.touch()
            await self._blobs.sweep()
            await asyncio.to_thread(self._sweep)
            await asyncio.sleep(TICK_S)

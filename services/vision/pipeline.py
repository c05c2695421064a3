"""From the source of an image to its embeddings: fetch, look up, decode, prepare, encode, keep.

Equal media in work are computed once, whoever asks. Memory is bounded at every stage: files by bytes, decoding by
pixels, waiting for the encoder by bytes. Knows no messages but the media's own, and no bus.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

from services.vision.batcher import Batcher
from services.vision.budget import Budget, Ceiling, Grow
from services.vision.cache import EmbeddingCache
from services.vision.config import VisionConfig
from services.vision.decode_image import ImageLimits, decode_image, read_size
from services.vision.decode_video import VideoLimits, decode_video
from services.vision.fingerprint import media_key
from services.vision.metrics import VisionMetrics
from services.vision.models.encoder import Encoder
from services.vision.processing.prepared import Prepared, Processor
from services.vision.rows import dtype_name
from services.vision.sources import Sources, scheme_of
from shared.errors import InvalidRequest, RhizomeError, from_code
from shared.messages.embedding import EmbeddingRef, MediaSource
from shared.messages.media import EncodedMedia

MAX_FPS = 240
PREPARED_BYTES = 1024 * 1024 * 1024
"""Of images that are resized and wait for the encoder."""
LEAST_PREPARED_BYTES = 4 * 1024 * 1024
"""Small images may become larger, to the least size that a model takes."""
MAX_VIDEOS = 4
"""Being decoded or waiting for the encoder."""


@dataclass(frozen=True, slots=True)
class Decoders:
    """Threads. Videos have their own, and so their number is bounded, because one may take as long as many images."""

    images: ThreadPoolExecutor
    videos: ThreadPoolExecutor


@dataclass(slots=True)
class _Flight:
    """One computation and how many wait for it."""

    task: asyncio.Task[EncodedMedia]
    waiters: int = field(default=0)


class Pipeline:
    """Lives as long as the service."""

    def __init__(
        self, sources: Sources, processor: Processor, encoder: Encoder, batcher: Batcher, cache: EmbeddingCache,
        limits: VideoLimits, decoders: Decoders, vision_id: str, fingerprint: str, metrics: VisionMetrics,
        held_bytes: int,
    ) -> None:  # fmt: skip
        """
        Args:
            held_bytes: most bytes of files in work at the same time; more are refused.
        """
        self._sources, self._processor, self._encoder = sources, processor, encoder
        self._batcher, self._cache, self._limits = batcher, cache, limits
        self._decoders, self._metrics = decoders, metrics
        self._vision_id, self._fingerprint = vision_id, fingerprint
        self._held = Ceiling(held_bytes)
        self._pixels = Budget(limits.frame.pixels)
        self._prepared = Budget(PREPARED_BYTES)
        self._videos = Budget(MAX_VIDEOS)
        self._flights: dict[str, _Flight] = {}

    @asynccontextmanager
    async def encoded(self, source: MediaSource) -> AsyncIterator[EncodedMedia]:
        """The embeddings of one image or video; they are not evicted while the context is open.

        Raises:
            RhizomeError: with the source's `param`.
        """
        async with AsyncExitStack() as pinned:
            with _blamed_on(source.param), self._held.hold() as grow:
                data, key = await self._fetch(source, grow)
                pinned.enter_context(self._cache.pinned(key))
                media = await self._look_up(key, data, source)
                del data
                await self._sources.used(source.url)
            yield media

    async def _fetch(self, source: MediaSource, grow: Grow) -> tuple[bytes, str]:
        with self._metrics.fetching(scheme_of(source.url)) as fetched:
            data = await self._sources.read(source.url, grow)
            fetched(len(data))
        return data, await asyncio.to_thread(media_key, data, source, self._fingerprint)

    async def _look_up(self, key: str, data: bytes, source: MediaSource) -> EncodedMedia:
        found = self._cache.get(key)
        if found is not None:
            self._metrics.hits.inc()
            return found
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.ensure_future(self._compute(key, data, source)))
            self._flights[key] = flight
            flight.task.add_done_callback(partial(self._landed, key))
        else:
            self._metrics.hits.inc()
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                flight.task.cancel()  # a no-op when it is done
                if self._flights.get(key) is flight:
                    del self._flights[key]

    def _landed(self, key: str, task: asyncio.Task[EncodedMedia]) -> None:
        if (flight := self._flights.get(key)) is not None and flight.task is task:
            del self._flights[key]
        if not task.cancelled():
            task.exception()  # its waiters may be gone: it counts as looked at

    async def _compute(self, key: str, data: bytes, source: MediaSource) -> EncodedMedia:
        async with self._ready(data, source) as item:
            del data
            rows = await self._batcher.encode(item)
            ref = EmbeddingRef(
                key=key, vision_id=self._vision_id, path="", tokens=item.tokens, width=self._encoder.width,
                dtype=dtype_name(self._encoder.dtype),
            )  # fmt: skip
            media = EncodedMedia(source.kind, ref, list(item.grid), list(item.timestamps_s), item.seconds_per_frame)
        done = await self._cache.put(media, rows)
        self._metrics.encoded(media)
        return done

    @asynccontextmanager
    async def _ready(self, data: bytes, source: MediaSource) -> AsyncIterator[Prepared]:
        """Decoded and resized. What it takes counts from before it is decoded until the context ends."""
        loop = asyncio.get_running_loop()
        if source.kind == "video":
            async with self._videos.hold(1):
                item = await loop.run_in_executor(self._decoders.videos, self._prepare_video, data, source)
                del data
                yield item
            return
        pixels = await loop.run_in_executor(self._decoders.images, self._measure, data, source)
        async with self._prepared.hold(max(3 * pixels, LEAST_PREPARED_BYTES)):
            async with self._pixels.hold(pixels):
                item = await loop.run_in_executor(self._decoders.images, self._prepare_image, data, source)
            del data
            yield item

    def _measure(self, data: bytes, source: MediaSource) -> int:
        """Pixels of an image that the model takes."""
        width, height = read_size(data, self._limits.frame)
        self._processor.layout(width, height, source.detail)
        return width * height

    def _prepare_image(self, data: bytes, source: MediaSource) -> Prepared:
        with self._metrics.prepare_s.time():
            return self._processor.prepare(decode_image(data, self._limits.frame), source.detail)

    def _prepare_video(self, data: bytes, source: MediaSource) -> Prepared:
        _check_sampling(source)

        taken_s = 0.0

        def sample(duration_s: float, fps: float, count: int) -> list[int]:
            nonlocal taken_s
            taken = list(self._processor.sample_frames(duration_s, fps, count, source.fps, source.max_frames))
            taken_s = (count / fps if fps else duration_s) / max(len(taken), 1)
            return taken

        with self._metrics.prepare_s.time():
            frames = decode_video(data, sample, self._limits)
            item = self._processor.prepare_video(frames.pictures, frames.timestamps_s)
        joined = -(-len(frames.pictures) // item.grid[0])
        return dataclasses.replace(item, seconds_per_frame=joined * taken_s)


def _check_sampling(source: MediaSource) -> None:
    if source.fps is not None and not 0 < source.fps <= MAX_FPS:
        raise InvalidRequest(f"fps must be more than 0 and at most {MAX_FPS}, got {source.fps}")
    if source.max_frames is not None and source.max_frames < 1:
        raise InvalidRequest(f"max_frames must be at least 1, got {source.max_frames}")


@contextmanager
def _blamed_on(param: str) -> Iterator[None]:
    """Errors name the request's field. They are copied, as several requests may wait for one computation."""
    try:
        yield
    except RhizomeError as fault:
        raise from_code(fault.code, fault.message, param or None) from fault


def limits_of(config: VisionConfig) -> VideoLimits:
    """The limits of images and videos from their flags."""
    frame = ImageLimits(config.max_image_pixels, config.max_image_side)
    return VideoLimits(frame, config.max_video_pixels, config.max_video_s, config.media_decode_timeout_s)

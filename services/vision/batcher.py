"""Batches for the encoder: whatever is waiting when it is free, from all requests, up to a number of patches.

Nothing waits for a batch to fill. The encoder has a thread of its own; meanwhile the next images are fetched, decoded
and resized elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from services.vision.models.encoder import Encoder
from services.vision.processing.prepared import Prepared
from services.vision.rows import host_rows


@dataclass(frozen=True, slots=True)
class Batch:
    """What was done, for metrics."""

    items: int
    patches: int
    encode_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    item: Prepared
    rows: asyncio.Future[np.ndarray]


class Batcher:
    """Lives as long as the service; `run` is its loop. The queue is as long as its callers are many."""

    def __init__(
        self, encoder: Encoder, max_patches: int, device: ThreadPoolExecutor, on_batch: Callable[[Batch], None]
    ) -> None:
        """
        Args:
            max_patches: in a batch; a larger item is a batch of its own.
            device: one thread.
        """
        self._encoder, self._max_patches, self._device, self._on_batch = encoder, max_patches, device, on_batch
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def encode(self, item: Prepared) -> np.ndarray:
        """The embeddings of an item, as raw rows: uint8 [tokens, width * bytes of dtype]."""
        waiting = _Waiting(item, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.rows

    async def run(self) -> None:
        """Encode until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._next():
                await self._execute(batch)

    def _next(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        patches = 0
        while self._queue:
            first = self._queue[0]
            if not first.rows.done():  # else nobody waits for it any more
                patches += first.item.patches
                if batch and patches > self._max_patches:
                    break
                batch.append(first)
            self._queue.popleft()
        return batch

    async def _execute(self, batch: list[_Waiting]) -> None:
        """Fill the futures. When a batch fails, each of its items is tried alone: one must not fail the others."""
        began_s = time.perf_counter()
        work = asyncio.get_running_loop().run_in_executor(self._device, self._encode, [w.item for w in batch])
        result: list[np.ndarray] | BaseException
        (result,) = await asyncio.gather(work, return_exceptions=True)
        if isinstance(result, BaseException):
            if len(batch) > 1:
                for waiting in batch:
                    await self._execute([waiting])
            elif not batch[0].rows.done():
                batch[0].rows.set_exception(result)
            return
        for waiting, rows in zip(batch, result, strict=True):
            if not waiting.rows.done():
                waiting.rows.set_result(rows)
        self._on_batch(Batch(len(batch), sum(w.item.patches for w in batch), time.perf_counter() - began_s))

    def _encode(self, items: list[Prepared]) -> list[np.ndarray]:
        return [host_rows(embeddings, self._encoder.dtype) for embeddings in self._encoder.encode(items)]

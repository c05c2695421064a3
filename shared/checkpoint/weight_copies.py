"""Copies of a checkpoint's tensors into a model's memory, several at a time. Called by `loader.py`.

A tensor is cut into chunks. Threads take them one by one: reading a mapped file and converting happen without Python's
lock. On the way to a GPU a chunk passes through a pinned buffer of its thread, so that nothing as large as a tensor is
held on the host; the mapped file is all that is, and only while it is read.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from shared.checkpoint.checkpoint_names import Index
from shared.checkpoint.target import WriteRows
from shared.log import Log

CHUNK_BYTES = 16 << 20
GPU_THREADS, CPU_THREADS = 8, 4
WRITTEN_SHARE = 4
"""Of such a chunk where values are computed with, which takes several times their memory."""
LINE_S = 1.0
"""A line of progress at most this often."""


class Slices(Protocol):
    """A file's tensor of which parts can be had (`safetensors.safe_open(...).get_slice(...)`)."""

    def __getitem__(self, index: Index) -> Tensor: ...


class WeightCopies(AbstractContextManager["WeightCopies"]):
    """Lives as long as one loading. `add` as many as there are in a file, then `wait` before the file is closed."""

    def __init__(
        self,
        device: torch.device,
        total_bytes: int,
        log: Log,
        num_threads: int | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """
        Args:
            total_bytes: of everything that will be copied, for the log.
            num_threads: None = as many as pay on this machine.
            chunk_bytes: what a thread copies at once, about.
        """
        most = GPU_THREADS if device.type == "cuda" else CPU_THREADS
        self._device, self._progress = device, LoadProgress(total_bytes, log)
        self._chunk_bytes = chunk_bytes
        self._torch_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(
            num_threads or min(most, os.cpu_count() or 1), "load", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._own = threading.local()
        self._under_way: list[tuple[Future[None], int]] = []
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the threads' streams do not wait for what made the memory

    def add(self, source: Slices, index: Index, into: Tensor, write: WriteRows | None = None) -> None:
        """Copy `source[index]` to `into`, which has its shape; the dtype may differ.

        Args:
            write: gets the values, whole rows of `into`, instead.
        """
        if write is None:
            for part, rows in chunks(index, into, self._chunk_bytes):
                self._under_way.append((self._pool.submit(self._copy, source, part, rows), rows.nbytes))
            return
        row = 0
        for part, rows in chunks(index, into, self._chunk_bytes // WRITTEN_SHARE):
            place = slice(row, row + len(rows))
            self._under_way.append((self._pool.submit(self._write, source, part, write, place), rows.nbytes))
            row = place.stop

    def wait(self) -> None:
        """Return when all is copied.

        Raises:
            SafetensorError, OSError: a file could not be read; the first one, in the order of `add`.
        """
        try:
            for future, nbytes in self._under_way:
                future.result()
                self._progress.add(nbytes)
        finally:
            for future, _ in self._under_way:
                future.cancel()
            self._under_way = []

    def __exit__(self, *fault: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._torch_threads)  # the threads' own setting is also the next new thread's
        if fault[0] is None:
            self._progress.finish()

    def _copy(self, source: Slices, index: Index, into: Tensor) -> None:
        """On a thread of the pool."""
        if self._device.type != "cuda":
            into.copy_(source[index])
            return
        with torch.cuda.stream(self._stream()):
            pinned = self._pinned(into.nbytes).view(into.dtype).view(into.shape)
            into.copy_(pinned.copy_(source[index]), non_blocking=True)
        self._stream().synchronize()

    def _write(self, source: Slices, index: Index, write: WriteRows, rows: slice) -> None:
        """On a thread of the pool."""
        values = source[index]
        if self._device.type != "cuda":
            write(values, rows)
            return
        with torch.cuda.stream(self._stream()):
            pinned = self._pinned(values.nbytes).view(values.dtype).view(values.shape)
            write(pinned.copy_(values).to(self._device, non_blocking=True), rows)
        self._stream().synchronize()

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream: torch.cuda.Stream = self._own.stream
        return stream

    def _pinned(self, nbytes: int) -> Tensor:
        have: Tensor | None = getattr(self._own, "pinned", None)
        if have is None or len(have) < nbytes:
            have = self._own.pinned = torch.empty(max(nbytes, self._chunk_bytes), dtype=torch.uint8, pin_memory=True)
        return have[:nbytes]


def chunks(index: Index, into: Tensor, chunk_bytes: int) -> Iterator[tuple[Index, Tensor]]:
    """Cut a copy of `source[index]` to `into` along the first dimension into parts of about `chunk_bytes`."""
    if into.nbytes <= chunk_bytes:
        yield index, into
        return
    at = next(place for place, part in enumerate(index) if isinstance(part, slice))
    whole = index[at]
    assert isinstance(whole, slice)
    first, rows = whole.start or 0, max(1, chunk_bytes * len(into) // into.nbytes)
    for start in range(0, len(into), rows):
        stop = min(start + rows, len(into))
        yield (*index[:at], slice(first + start, first + stop), *index[at + 1 :]), into[start:stop]


class LoadProgress:
    """Tells the log how far a loading is."""

    def __init__(self, total_bytes: int, log: Log, clock: Callable[[], float] = time.perf_counter) -> None:
        self._total, self._log, self._clock = total_bytes, log, clock
        self._done = 0
        self._began_s = self._told_s = clock()

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        now_s = self._clock()
        if now_s - self._told_s >= LINE_S:
            self._told_s = now_s
            share = self._done / max(self._total, 1)
            self._log.info("loading weights", bytes=self._done, share=share, mb_per_s=self._rate(now_s))

    def finish(self) -> None:
        now_s = self._clock()
        self._log.info("weights", bytes=self._done, seconds=now_s - self._began_s, mb_per_s=self._rate(now_s))

    def _rate(self, now_s: float) -> float:
        return self._done / max(now_s - self._began_s, 1e-9) / 1e6

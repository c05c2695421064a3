"""Embeddings kept for the next time they are asked for. The files that workers map are the cache.

So a cache outlives its process: the next instance of the same name adopts the complete files. Least recently used ones
go first; what a running demand will refer to is pinned. The event loop owns the books; only files are written in
threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared import embedding_file
from shared.errors import InvalidRequest, MediaLost, Overloaded, Unavailable
from shared.messages.media import EncodedMedia


@dataclass(frozen=True, slots=True)
class _Entry:
    media: EncodedMedia
    size: int


class EmbeddingCache:
    """Lives as long as the service."""

    def __init__(self, folder: Path, vision_id: str, budget_bytes: int) -> None:
        """Adopts what is in `folder`."""
        self._folder, self._vision_id, self._budget = folder, vision_id, budget_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._writing: set[asyncio.Future[EncodedMedia]] = set()
        self.used_bytes = 0
        self._adopt()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def budget_bytes(self) -> int:
        return self._budget

    @contextmanager
    def pinned(self, key: str) -> Iterator[None]:
        """Keep an entry, there already or not yet, while somebody is going to refer to it."""
        self._pins[key] += 1
        try:
            yield
        finally:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def get(self, key: str) -> EncodedMedia | None:
        """An entry, now the most recently used one; None if there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not Path(entry.media.ref.path).exists():  # somebody cleared the folder
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry.media

    async def put(self, media: EncodedMedia, rows: np.ndarray) -> EncodedMedia:
        """Write embeddings to a file, evicting others for them; returns them with the file's path.

        Args:
            rows: uint8 [tokens, width * bytes of dtype], contiguous.

        Raises:
            InvalidRequest: larger than the whole cache.
            Overloaded: all that could be evicted is in use.
            Unavailable: shared memory is full.
        """
        size = embedding_file.file_bytes(media)
        if size > self._budget:
            raise InvalidRequest(
                f"its embeddings of {size:,} bytes are over the {self._budget:,} of --embedding-cache-bytes"
            )
        self._make_room(size)
        self.used_bytes += size
        writing = asyncio.ensure_future(self._write(media, rows, size))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        return await asyncio.shield(writing)  # the books stay right when the caller is cancelled

    async def _write(self, media: EncodedMedia, rows: np.ndarray, size: int) -> EncodedMedia:
        try:
            ref = await asyncio.to_thread(embedding_file.write, self._folder, media, rows.data)
        except Unavailable:
            self.used_bytes -= size
            raise
        if ref.key in self._entries:
            self._forget(ref.key)
        done = dataclasses.replace(media, ref=ref)
        self._entries[ref.key] = _Entry(done, size)
        return done

    def read_file(self, key: str) -> bytes:
        """The whole file of an entry. Blocks: call it in a thread.

        Raises:
            MediaLost: it was evicted.
        """
        try:
            return (self._folder / f"{key}{embedding_file.SUFFIX}").read_bytes()
        except OSError as fault:
            raise MediaLost(f"embeddings {key} are not kept any more") from fault

    def _adopt(self) -> None:
        for path in self._folder.glob(f".*{embedding_file.TEMP_SUFFIX}"):
            path.unlink()
        for path in sorted(self._folder.glob(f"*{embedding_file.SUFFIX}"), key=lambda path: path.stat().st_mtime):
            try:
                media = embedding_file.read_header(path)
            except MediaLost:
                path.unlink()
                continue
            ref = dataclasses.replace(media.ref, vision_id=self._vision_id, path=str(path))
            self._entries[ref.key] = _Entry(dataclasses.replace(media, ref=ref), path.stat().st_size)
            self.used_bytes += path.stat().st_size
        while self.used_bytes > self._budget:
            self._evict(next(iter(self._entries)))

    def _make_room(self, size: int) -> None:
        evictable = [key for key in self._entries if not self._pins[key]]
        for key in evictable:
            if self.used_bytes + size <= self._budget:
                return
            self._evict(key)
        if self.used_bytes + size > self._budget:
            raise Overloaded(
                f"embeddings in use fill the {self._budget:,} bytes of --embedding-cache-bytes: send fewer images at "
                "once, or try again"
            )

    def _evict(self, key: str) -> None:
        Path(self._entries[key].media.ref.path).unlink(missing_ok=True)
        self._forget(key)

    def _forget(self, key: str) -> None:
        self.used_bytes -= self._entries.pop(key).size


def budget(asked_bytes: int, folder: Path) -> int:
    """Bytes that the cache may take: what was asked for, at most half of what is free or its own already."""
    own = sum(path.stat().st_size for path in folder.glob(f"*{embedding_file.SUFFIX}"))
    return max(1, min(asked_bytes, (shutil.disk_usage(folder).free + own) // 2))

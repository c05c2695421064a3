"""Changes of a radix cache as `KvEvents`, for routers outside that want to know who holds which prefix.

A page is named by a 63-bit hash of its tokens and of the page before it, so equal prefixes have equal names on every
engine of a scheduler (images and videos are in them by the scheduler's own names, see `media_names`). Salts enter the
first hash. An event holds net changes: no page is both stored and removed in it.
"""

from __future__ import annotations

import hashlib
from itertools import islice

import numpy as np
import numpy.typing as npt

from shared import messages as m

I32 = npt.NDArray[np.int32]
MAX_EVENT_TOKENS = 1 << 18
"""Bounds one message to about 2 MB of JSON; a page counts as its tokens and 8 more."""


class KvEventLog:
    """Collects changes between two `take`s; implements `radix_cache.CacheObserver`. Lives as long as a session."""

    def __init__(self, engine_id: str, page_size: int) -> None:
        self._engine_id, self._page_size = engine_id, page_size
        self._max_blocks = max(MAX_EVENT_TOKENS // (page_size + 8), 1)
        self._seq = 0
        self._stored: dict[int, m.KvBlock] = {}
        self._removed: dict[int, None] = {}  # a set in order
        self._cleared = True  # a new session starts with an empty cache, whatever was heard of the one before

    def stored(self, before: I32, tokens: I32, salt: str) -> None:
        parent = self._hashes(before, salt)[-1] if len(before) else None
        for at in range(0, len(tokens), self._page_size):
            page = tokens[at : at + self._page_size]
            name = self._hash(parent, page, salt)
            if name in self._removed:
                del self._removed[name]
            else:
                self._stored[name] = m.KvBlock(name, parent, page.tolist())
            parent = name

    def removed(self, path: I32, count: int, salt: str) -> None:
        for name in self._hashes(path, salt)[len(path) // self._page_size - count // self._page_size :]:
            if name in self._stored:
                del self._stored[name]
            else:
                self._removed[name] = None

    def cleared(self) -> None:
        self._stored, self._removed, self._cleared = {}, {}, True

    def take(self) -> m.KvEvents | None:
        """The next part of what changed since the last call; None if nothing is left to tell."""
        if not (self._stored or self._removed or self._cleared):
            return None
        stored = list(islice(self._stored, self._max_blocks))
        removed = list(islice(self._removed, self._max_blocks))
        event = m.KvEvents(
            engine_id=self._engine_id, seq=self._seq, page_size=self._page_size,
            stored=[self._stored.pop(name) for name in stored], removed=removed, cleared=self._cleared,
        )  # fmt: skip
        for name in removed:
            del self._removed[name]
        self._seq += 1
        self._cleared = False
        return event

    def _hashes(self, tokens: I32, salt: str) -> list[int]:
        out: list[int] = []
        for at in range(0, len(tokens), self._page_size):
            out.append(self._hash(out[-1] if out else None, tokens[at : at + self._page_size], salt))
        return out

    def _hash(self, parent: int | None, page: I32, salt: str) -> int:
        before = salt.encode() if parent is None else parent.to_bytes(8, "little")
        digest = hashlib.blake2b(before + page.astype("<i4").tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

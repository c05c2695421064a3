"""Bits of a token mask: int32 words, bit i % 32 of word i // 32 belongs to token i."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray

_BIT = (np.uint32(1) << np.arange(32, dtype=np.uint32)).view(np.int32)


class MaskMemory:
    """Masks that were worked out before, the least recently used ones dropped. For any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._held = limit_bytes, 0
        self._masks: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> bytes | None:
        with self._lock:
            mask = self._masks.get(key)
            if mask is not None:
                self._masks.move_to_end(key)
            return mask

    def put(self, key: Hashable, mask: bytes) -> bytes:
        """Returns `mask`, or the equal one that somebody else was first with."""
        with self._lock:
            if (known := self._masks.get(key)) is not None:
                return known
            self._masks[key] = mask
            self._held += len(mask)
            while self._held > self._limit:
                self._held -= len(self._masks.popitem(last=False)[1])
            return mask


def set_bits(words: NDArray[np.int32], token_ids: Iterable[int]) -> None:
    """Allow tokens."""
    for i in token_ids:
        words[i >> 5] |= _BIT[i & 31]


def clear_bits(words: NDArray[np.int32], token_ids: Iterable[int]) -> None:
    """Forbid tokens."""
    for i in token_ids:
        words[i >> 5] &= ~_BIT[i & 31]


def only_bit(words: NDArray[np.int32]) -> int | None:
    """The allowed token when there is exactly one."""
    (used,) = np.nonzero(words)
    if len(used) != 1:
        return None
    word = int(words[used[0]]) & 0xFFFFFFFF
    return None if word & (word - 1) else int(used[0]) * 32 + word.bit_length() - 1


def allowed_ids(words: NDArray[np.int32]) -> NDArray[np.int64]:
    """Ids of all allowed tokens, ascending. Shape [count], int64."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return np.nonzero(bits)[0]

"""Masks of grammars as they come over the bus, checked, in the forms that samplers keep them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.worker.rows import I64, ragged_arange
from shared.errors import InvalidRequest
from shared.messages.step import StepMasks

I32 = npt.NDArray[np.int32]
_NONE: I32 = np.zeros(0, np.int32)


class MaskUpdate:
    """What one or several `StepMasks` say of a plan, in order.

    M rows, N slots with new contents, V vocabulary.
    """

    def __init__(self, messages: Sequence[StepMasks], max_rows: int, mask_slots: int, vocab_size: int) -> None:
        """
        Raises:
            InvalidRequest: a row, slot or token that does not exist, or arrays that do not fit together.
        """
        self._vocab = vocab_size
        self.rows: I64 = np.concatenate([masks.rows for masks in messages]).astype(np.int64)
        """[M]"""
        self.slots: I64 = np.concatenate([masks.slots for masks in messages]).astype(np.int64)
        """[M] -1 = unmasked"""
        _require(len(self.rows) == len(self.slots), "rows and slots differ in length")
        _within("rows", self.rows, 0, max_rows)
        _within("slots", self.slots, -1, mask_slots)
        parts = [self._contents(masks, mask_slots) for masks in messages]
        self.new_slots: I64 = np.concatenate([slots for slots, _ in parts])
        """[N]"""
        self.new_masks: I32 = np.concatenate([masks for _, masks in parts])
        """[N, ceil(V / 32)] bit 1 = allowed"""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[N, V] the new masks, a byte per token."""
        bits = np.unpackbits(self.new_masks.view(np.uint8), axis=1, bitorder="little")
        return bits[:, : self._vocab].view(np.bool_)

    def _contents(self, masks: StepMasks, mask_slots: int) -> tuple[I64, I32]:
        words = -(-self._vocab // 32)
        whole = np.zeros((0, words), np.int32) if masks.new_masks is None else masks.new_masks
        slots, list_slots, counts, tokens = (
            _NONE if part is None else part
            for part in (masks.new_slots, masks.list_slots, masks.list_counts, masks.list_tokens)
        )
        _require(whole.ndim == 2 and whole.shape == (len(slots), words), f"new_masks are {list(whole.shape)}")
        _require(len(list_slots) == len(counts) and int(counts.sum()) == len(tokens), "lists do not fit their counts")
        _within("list_counts", counts, 1, self._vocab + 1)
        _within("list_tokens", tokens, 0, self._vocab)
        every = np.concatenate((slots, list_slots)).astype(np.int64)
        _within("slots of new masks", every, 0, mask_slots)
        listed = np.zeros((len(list_slots), words), np.uint32)
        at = np.repeat(np.arange(len(list_slots)), counts)
        np.bitwise_or.at(listed, (at, tokens // 32), np.uint32(1) << (tokens % 32).astype(np.uint32))
        return every, np.concatenate((whole, listed.view(np.int32)))


def spread(rows: I64, counts: I64, ends: I64) -> tuple[I64, I64]:
    """Rows repeated by their counts, and the indices of the last `counts` items before each of `ends`."""
    return np.repeat(rows, counts), np.repeat(ends - counts, counts) + ragged_arange(counts)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidRequest(f"masks: {message}")


def _within(name: str, values: npt.NDArray[np.integer], low: int, high: int) -> None:
    if len(values) and not (low <= values.min() and values.max() < high):
        raise InvalidRequest(f"masks: {name} are not in {low}..{high - 1}")

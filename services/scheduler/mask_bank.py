"""Masks of one engine, interned: each distinct mask has a slot in the worker's bank and travels there once.

Grammar states recur (the inside of a string is one mask), so at steady state a step's masks are slot numbers. The
least recently used slot is given away when all are taken; the worker changes contents and samples in one order, so a
slot may be written again as soon as the message that uses it was made.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from shared import messages as m

I32 = npt.NDArray[np.int32]
LIST_TOKENS = 64
"""Masks that allow at most so many tokens travel as lists."""
MOST_BYTES = 4 * 1024 * 1024
"""Of new masks in one message."""


class MaskBank:
    """Lives as long as an engine's session."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self.num_slots, self._words = num_slots, -(-vocab_size // 32)
        self._slot_of: OrderedDict[bytes | int, int] = OrderedDict()
        self._sent = 0
        self.looked_up = self.travelled = self.travelled_bytes = 0
        """Rows given a mask, masks that had to be sent for them, and their bytes."""

    def message(
        self, engine_id: str, session: str, seq: int, wanted: list[tuple[int, int | bytes | None]]
    ) -> list[m.StepMasks]:
        """The messages that give rows their masks, usually one.

        Args:
            wanted: row and what it may sample: one token, a mask (int32 [ceil(V / 32)]), or anything (None).
        """
        out: list[m.StepMasks] = []
        at = 0
        while at < len(wanted) or not out:
            draft = _Draft()
            while at < len(wanted) and draft.bytes < MOST_BYTES:
                row, what = wanted[at]
                draft.rows.append(row)
                draft.slots.append(-1 if what is None else self._slot(what, draft))
                at += 1
            self.travelled_bytes += draft.bytes
            out.append(draft.finish(engine_id, session, seq, self._words))
        return out

    def _slot(self, what: int | bytes, draft: _Draft) -> int:
        self.looked_up += 1
        slot = self._slot_of.get(what)
        if slot is not None:
            self._slot_of.move_to_end(what)
            draft.used.add(slot)
            return slot
        slot = len(self._slot_of) if len(self._slot_of) < self.num_slots else self._evict(draft)
        self._slot_of[what] = slot
        self.travelled += 1
        draft.used.add(slot)
        draft.add(slot, what)
        return slot

    def _evict(self, draft: _Draft) -> int:
        """The least recently used slot that the message in the making does not name."""
        for key, slot in self._slot_of.items():
            if slot not in draft.used:
                del self._slot_of[key]
                return slot
        raise AssertionError("an engine has more slots than rows")


class _Draft:
    """A message in the making."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.slots: list[int] = []
        self.used: set[int] = set()
        self.bytes = 0
        self._whole: list[tuple[int, I32]] = []
        self._lists: list[tuple[int, I32]] = []

    def add(self, slot: int, what: int | bytes) -> None:
        """New contents of a slot."""
        if isinstance(what, int):
            tokens: I32 | None = np.array([what], np.int32)
        else:
            mask = np.frombuffer(what, np.int32)
            tokens = allowed_tokens(mask, LIST_TOKENS)
        if tokens is None:
            self._whole.append((slot, mask))
            self.bytes += 4 + mask.nbytes
        else:
            self._lists.append((slot, tokens))
            self.bytes += 8 + tokens.nbytes

    def finish(self, engine_id: str, session: str, seq: int, words: int) -> m.StepMasks:
        whole, lists = self._whole, self._lists
        return m.StepMasks(
            engine_id, session, seq, np.array(self.rows, np.int32), np.array(self.slots, np.int32),
            new_slots=np.array([slot for slot, _ in whole], np.int32) if whole else None,
            new_masks=np.stack([mask for _, mask in whole]).reshape(-1, words) if whole else None,
            list_slots=np.array([slot for slot, _ in lists], np.int32) if lists else None,
            list_counts=np.array([len(tokens) for _, tokens in lists], np.int32) if lists else None,
            list_tokens=np.concatenate([tokens for _, tokens in lists]) if lists else None,
        )  # fmt: skip


def allowed_tokens(mask: I32, most: int) -> I32 | None:
    """The tokens that a mask [ceil(V / 32)] allows, ascending, or None if they are more than `most`."""
    words = np.flatnonzero(mask)
    if len(words) > most:
        return None
    bits = np.unpackbits(mask[words].view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    word, bit = np.nonzero(bits)
    return (words[word] * 32 + bit).astype(np.int32) if len(word) <= most else None

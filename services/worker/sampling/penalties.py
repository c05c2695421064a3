"""Presence, frequency and repetition penalties: which tokens a row has seen, and what that does to its logits.

Rows without penalties have no storage here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from services.worker.rows import I64
from services.worker.upload import upload
from shared.messages.step import RowInit


class Penalties:
    """Token counts of the rows that use penalties; changed by `init` and by each sampled token."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab, self._device = vocab_size, device
        self._slot_of = np.full(max_rows, -1, np.int64)
        self._free: list[int] = []
        self._prompt = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)  # [slots, V] in the prompt
        self._counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)  # [slots, V] in the output
        self._presence = torch.zeros((max_rows, 1), device=device)
        self._frequency = torch.zeros((max_rows, 1), device=device)
        self._repetition = torch.zeros((max_rows, 1), device=device)

    @staticmethod
    def used_by(init: RowInit) -> bool:
        return bool(init.presence_penalty or init.frequency_penalty or init.repetition_penalty != 1.0)

    def init(self, init: RowInit) -> None:
        """Start a row; frees what its last user had."""
        if not self.used_by(init):
            self.release(init.row)
            return
        if self._slot_of[init.row] < 0:
            self._slot_of[init.row] = self._take_slot()
        slot = int(self._slot_of[init.row])
        self._prompt[slot] = False
        self._prompt[slot, torch.tensor(init.history_ids, dtype=torch.int64, device=self._device)] = True
        output = torch.tensor(init.output_ids, dtype=torch.int64, device=self._device)
        self._counts[slot] = torch.bincount(output, minlength=self._vocab).int()
        self._presence[init.row] = init.presence_penalty
        self._frequency[init.row] = init.frequency_penalty
        self._repetition[init.row] = init.repetition_penalty

    def release(self, row: int) -> None:
        """The row needs no storage any more."""
        if self._slot_of[row] >= 0:
            self._free.append(int(self._slot_of[row]))
            self._slot_of[row] = -1

    def apply_(self, logits: Tensor, index: I64, rows: I64) -> None:
        """Penalize `logits[index]` [N, V] in place, for `rows` [N].

        Repetition (over prompt and output) first, then frequency and presence (over output).
        """
        at, row, slot = (upload(a, self._device) for a in (index, rows, self._slot_of[rows]))
        values = logits.index_select(0, at)
        counts = self._counts.index_select(0, slot)
        generated = counts > 0
        factor = self._repetition[row]
        worse = torch.where(values > 0, values / factor, values * factor)
        values = torch.where(generated | self._prompt.index_select(0, slot), worse, values)
        values -= self._frequency[row] * counts
        values -= self._presence[row] * generated
        logits.index_copy_(0, at, values)

    def count(self, rows: I64, tokens: Tensor) -> None:
        """Note a sampled token for each of `rows`."""
        slot = upload(self._slot_of[rows], self._device)
        one = torch.ones(1, dtype=torch.int32, device=self._device)
        self._counts.index_put_((slot, tokens), one, accumulate=True)

    def _take_slot(self) -> int:
        if not self._free:
            have = self._counts.shape[0]
            more = max(have, 4)
            self._counts = torch.cat((self._counts, self._counts.new_zeros((more, self._vocab))))
            self._prompt = torch.cat((self._prompt, self._prompt.new_zeros((more, self._vocab))))
            self._free = list(range(have, have + more))
        return self._free.pop()

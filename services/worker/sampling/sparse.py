"""Additions to a few logits per row: logit bias, and stop ids that are forbidden for now."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from services.worker.rows import I64
from services.worker.upload import upload


class SparseRows:
    """Per row up to W (token id, value) pairs; W grows to the largest row. Unused pairs add 0 to token 0."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._ids = torch.zeros((max_rows, 0), dtype=torch.int64, device=device)
        self._values = torch.zeros((max_rows, 0), dtype=torch.float32, device=device)

    def set(self, row: int, pairs: Mapping[int, float]) -> None:
        """Replace the pairs of a row."""
        missing = len(pairs) - self._ids.shape[1]
        if missing > 0:
            self._ids = torch.nn.functional.pad(self._ids, (0, missing))
            self._values = torch.nn.functional.pad(self._values, (0, missing))
        self._ids[row], self._values[row] = 0, 0.0
        if pairs:
            self._ids[row, : len(pairs)] = torch.tensor(list(pairs), dtype=torch.int64, device=self._ids.device)
            self._values[row, : len(pairs)] = torch.tensor(list(pairs.values()), device=self._ids.device)

    def add_to(self, logits: Tensor, index: I64, rows: I64) -> None:
        """`logits[index]` [N, V] get the pairs of `rows` [N] added, in place."""
        at = upload(index, logits.device).unsqueeze(1)
        row = upload(rows, logits.device)
        logits.index_put_((at, self._ids[row]), self._values[row], accumulate=True)

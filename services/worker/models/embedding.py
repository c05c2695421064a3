"""The table of token embeddings, plain or of 8 bits, and its second use as the output head. Made by `Place`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.worker.quantization.stored import Stored
from services.worker.quantization.weights import IntWeight, Weight, expanded
from shared.checkpoint.target import Target


class Embedding:
    """Rows by token id. Fill the targets, call `pack` once, then call it."""

    def __init__(self, stored: Stored, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: of the rows that are given out.
        """
        self._stored, self._dtype = stored, dtype
        self._weight: Weight | None = None

    def targets(self) -> dict[str, Target]:
        return self._stored.targets

    def pack(self) -> None:
        """Call once, after loading. A table of 4 bits is expanded: its rows are not neighbours in memory."""
        weight = self._stored.read()
        keep = isinstance(weight, Tensor) or (isinstance(weight, IntWeight) and weight.bits == 8)
        self._weight = weight if keep else expanded(weight, self._dtype)

    def weight(self) -> Weight:
        """The whole table. After `pack`."""
        assert self._weight is not None, "not packed yet"
        return self._weight

    def __call__(self, ids: Tensor) -> Tensor:
        """[T] -> [T, hidden]"""
        weight = self.weight()
        if isinstance(weight, Tensor):
            return F.embedding(ids, weight)
        assert isinstance(weight, IntWeight)
        scales = weight.scales.index_select(0, ids)
        rows = weight.codes.index_select(0, ids).to(torch.float32).view(*scales.shape, -1).mul_(scales.unsqueeze(2))
        if weight.offsets is not None:
            rows += weight.offsets.index_select(0, ids).unsqueeze(2)
        return rows.flatten(1).to(self._dtype)

"""Weights of all experts of a layer in 4 or 8 bits, stacked in the layout that their grouped products read.

A feature shares its byte with the one half a weight away, so that a program of the gated product has a column of gate
and the same one of up in hand at once. Made once, after loading, by `models/triton_experts.py`; read by
`packed_experts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.worker.kernels.int_tiles import make_tiles


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """E weights of N outputs and K inputs, of one form. A weight is `(code * scale + offset) * factor`."""

    bits: int
    codes: torch.Tensor
    """4 bits: uint8 [E, N / 2, K], feature n in the low half of a byte and feature n + N / 2 in the high half; 8 bits:
    int8 or e4m3 [E, N, K]."""
    table: torch.Tensor
    """4 bits: int32 [E, groups, 2, N / 2], the first half of the features first, scale and offset as float16 in the low
    and high half; 8 bits: float32 [E, groups, N] scales."""
    factors: torch.Tensor
    """[E] float32: powers of two, so that 16 bits are enough for an expert's scales and offsets."""
    order: torch.Tensor | None
    """[E, K] int32: column k of an expert's codes belongs to input order[k]. None = all are in order."""
    width: int
    """Outputs that are meant: N, or one less where a feature was added to make pairs."""
    group: int
    """Inputs that share a scale."""

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.table, self.factors, self.order)
        return sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class ExpertCodes:
    """One expert's weight as it was loaded."""

    codes: torch.Tensor
    """[N, K] uint8 in 0..15, int8, or e4m3"""
    scales: torch.Tensor
    """[N, groups] float32"""
    offsets: torch.Tensor | None
    """Of the same shape, for 4 bits."""
    order: torch.Tensor | None
    """[K]"""


def stack_tiles(bits: int, experts: Sequence[ExpertCodes]) -> ExpertTiles:
    """Lay the weights out for the kernels; all have the same shapes, and an order or none."""
    width = len(experts[0].codes)
    if bits == 4:
        tiles = [make_tiles(4, *(_paired(part) for part in _parts(expert))) for expert in experts]
    else:
        tiles = [make_tiles(8, expert.codes, expert.scales, None) for expert in experts]
    codes = torch.stack([tile.codes.view(torch.uint8) for tile in tiles]).view(tiles[0].codes.dtype)
    factors = torch.tensor([tile.factor for tile in tiles], dtype=torch.float32, device=codes.device)
    orders = [expert.order for expert in experts if expert.order is not None]
    order = torch.stack(orders).int() if orders else None
    return ExpertTiles(bits, codes, torch.stack([tile.table for tile in tiles]), factors, order, width, tiles[0].group)


def _parts(expert: ExpertCodes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert expert.offsets is not None
    return expert.codes, expert.scales, expert.offsets


def _paired(rows: torch.Tensor) -> torch.Tensor:
    """Features [N, ...] as 0, N / 2, 1, N / 2 + 1, ...; an odd number gets one more, of zeros."""
    if len(rows) % 2:
        rows = torch.cat((rows, torch.zeros_like(rows[:1])))
    return rows.reshape(2, len(rows) // 2, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)

"""The forms that weights take in memory before a device's kernels lay them out: plain, whole numbers, 8-bit floats.

Formats make them, `models/linear.py` puts them beside each other, `LayerOps.product` computes with them. Made while a
model is loaded, one layer at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class IntWeight:
    """Whole numbers of 4 or 8 bits: w = code * scale + offset, which G groups of neighbouring inputs share."""

    bits: int
    codes: Tensor
    """[N, K] uint8 of 0..15, or int8"""
    scales: Tensor
    """[N, G] fp32"""
    offsets: Tensor | None
    """[N, G] fp32; None = zeros, with 8 bits only"""
    order: Tensor | None = None
    """[K] int64: column k of the codes belongs to input order[k]. None = they are in order."""

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def expand(self) -> Tensor:
        """[N, K] fp32, inputs in order."""
        weight = self.codes.float().reshape(*self.scales.shape, -1) * self.scales.unsqueeze(2)
        if self.offsets is not None:
            weight += self.offsets.unsqueeze(2)
        weight = weight.flatten(1)
        return weight if self.order is None else torch.empty_like(weight).index_copy_(1, self.order, weight)


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """8-bit floats: w = code * scale."""

    codes: Tensor
    """[N, K] e4m3"""
    scales: Tensor
    """[N, G] fp32, of G groups of neighbouring inputs"""

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def expand(self) -> Tensor:
        """[N, K] fp32"""
        return (self.codes.float().reshape(*self.scales.shape, -1) * self.scales.unsqueeze(2)).flatten(1)


Weight = Tensor | IntWeight | Fp8Weight


def int_weight(
    bits: int, codes: Tensor, scales: Tensor, zeros: Tensor | None, order: Tensor | None = None
) -> IntWeight:
    """w = (code - zero) * scale of codes that count from 0.

    Args:
        codes: [N, K] uint8 of 0 to 2^bits - 1
        scales: [N, G] fp32
        zeros: [N, G] of whole numbers; None = all are the middle, 2^(bits - 1).
        order: as in `IntWeight`.
    """
    middle = 2 ** (bits - 1)
    if bits == 8 and zeros is not None and bool((zeros == middle).all()):
        zeros = None
    scales = scales.contiguous()
    if bits == 8:
        offsets = None if zeros is None else scales * (middle - zeros)
        return IntWeight(8, (codes ^ middle).contiguous().view(torch.int8), scales, offsets, order)
    return IntWeight(4, codes.contiguous(), scales, scales * -(middle if zeros is None else zeros), order)


def expanded(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The plain weight that `weight` stands for."""
    return weight if isinstance(weight, Tensor) else weight.expand().to(dtype)


def fp8_of(weight: Tensor) -> Fp8Weight:
    """The nearest 8-bit floats of a plain weight [N, K], with a scale for each output."""
    most = torch.finfo(FP8).max
    scales = weight.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / most
    return Fp8Weight((weight.float() / scales).clamp_(-most, most).to(FP8), scales)


def beside(weights: Iterable[Weight]) -> list[Weight]:
    """Weights with the same inputs as few larger ones, outputs in order; only those of one kind become one."""
    return [_joined(list(alike)) for _, alike in itertools.groupby(weights, _kind)]


def _kind(weight: Weight) -> tuple[object, ...]:
    if isinstance(weight, Tensor):
        return (Tensor,)
    if isinstance(weight, Fp8Weight):
        return Fp8Weight, weight.scales.shape[1]
    order = None if weight.order is None else tuple(weight.order.tolist())
    return IntWeight, weight.bits, weight.scales.shape[1], weight.offsets is None, order


def _joined(weights: list[Weight]) -> Weight:
    first = weights[0]
    if len(weights) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat([w for w in weights if isinstance(w, Tensor)])
    if isinstance(first, Fp8Weight):
        alike = [w for w in weights if isinstance(w, Fp8Weight)]
        return Fp8Weight(_stack_fp8([w.codes for w in alike]), torch.cat([w.scales for w in alike]))
    ints = [w for w in weights if isinstance(w, IntWeight)]
    offsets = [w.offsets for w in ints if w.offsets is not None]
    return IntWeight(
        first.bits, torch.cat([w.codes for w in ints]), torch.cat([w.scales for w in ints]),
        torch.cat(offsets) if offsets else None, first.order,
    )  # fmt: skip


def _stack_fp8(codes: list[Tensor]) -> Tensor:
    return torch.cat([part.view(torch.uint8) for part in codes]).view(FP8)

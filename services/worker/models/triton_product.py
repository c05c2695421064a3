"""Products with quantized weights as GPU kernels. Imported only where Triton is there.

Nothing waits for the device, and what is launched depends on shapes alone: a CUDA graph may hold it.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from services.worker.kernels.arrivals import arrival_counters
from services.worker.kernels.fp8_product import MOST_TOKENS as MOST_FP8_TOKENS
from services.worker.kernels.fp8_product import fp8_product
from services.worker.kernels.fp8_rows import fp8_rows
from services.worker.kernels.int_product import expands, int_product
from services.worker.kernels.int_tiles import IntTiles, expand, make_tiles
from services.worker.kernels.silu_and_mul import silu_and_mul
from services.worker.models.group_offsets import add_offsets
from services.worker.quantization.rounded import Fp8Rows
from services.worker.quantization.weights import Fp8Weight, IntWeight

_counters = functools.cache(arrival_counters)
"""One per device: an engine's products follow each other on one stream."""
PLAIN_TOKENS = 16
"""Up to here the time is that of reading the weight, and rounding activations only adds to it: 104 against 130 us for
the products of an 8B layer and one token (H100)."""
SCALED_UNIT = 16
"""Of both sides of a matrix of 8-bit floats that torch multiplies."""


class TritonIntProduct:
    """Weights are expanded beside the tensor cores; for many tokens once, for a plain product."""

    def __init__(self, weight: IntWeight | Fp8Weight, *, gated: bool = False) -> None:
        """
        Args:
            gated: the weight is that of gate and of up, of 4 bits, and silu(gate) * up is what is wanted.
        """
        self._width, self._gated = weight.shape[0], gated
        self._tiles = _tiles(weight, gated)
        self._order = weight.order if isinstance(weight, IntWeight) else None
        self._offsets = weight.offsets if isinstance(weight, IntWeight) and weight.bits == 8 else None
        self.nbytes = self._tiles.codes.nbytes + self._tiles.table.nbytes
        self.nbytes += 0 if self._offsets is None else self._offsets.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._order is not None:
            x = x.index_select(1, self._order)
        out = self._scaled(x, bias)
        return out if self._offsets is None else add_offsets(out, x, self._offsets)

    def _scaled(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Without the offsets of 8 bits."""
        if expands(x, self._tiles):
            out = F.linear(x, expand(self._tiles, x.dtype)[: self._width], bias)
            if not self._gated:
                return out
            gated = out.new_empty((len(x), self._width // 2))
            silu_and_mul(out, gated)
            return gated
        if bias is not None and self._width < self._tiles.width:
            bias = F.pad(bias, (0, 1))
        return int_product(x, self._tiles, bias, _counters(x.device))[:, : self._width]


class TritonFp8Product:
    """Both matrices of 8-bit floats, a scale for each token and each output; for few tokens the weight alone."""

    def __init__(self, weight: Fp8Weight) -> None:
        self._tiles = make_tiles(8, weight.codes, weight.scales, None)
        self._codes, self._scales = self._tiles.codes, self._tiles.table
        self.nbytes = self._codes.nbytes + self._scales.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.rounds(len(x)):
            return self.of_rounded(fp8_rows(x), bias)
        return int_product(x, self._tiles, bias, _counters(x.device))

    def rounds(self, tokens: int) -> bool:
        return tokens > PLAIN_TOKENS

    def of_rounded(self, x: Fp8Rows, bias: Tensor | None) -> Tensor:
        if len(x) <= MOST_FP8_TOKENS:
            counters = _counters(x.codes.device)
            return fp8_product(x.codes, x.scales, self._codes, self._scales, bias, counters, x.dtype)
        out: Tensor = torch._scaled_mm(
            x.codes, self._codes.T, x.scales, self._scales, out_dtype=x.dtype, use_fast_accum=True
        )
        return out if bias is None else out.add_(bias)


def fits_scaled_product(weight: Fp8Weight, dtype: torch.dtype) -> bool:
    """Whether torch multiplies this weight: one scale an output, bf16 results, whole units, and a card that can."""
    return (
        weight.codes.is_cuda
        and torch.cuda.get_device_capability(weight.codes.device) >= (8, 9)
        and weight.scales.shape[1] == 1
        and dtype == torch.bfloat16
        and not any(side % SCALED_UNIT for side in weight.shape)
    )


def _tiles(weight: IntWeight | Fp8Weight, gated: bool = False) -> IntTiles:
    if isinstance(weight, Fp8Weight) or weight.bits == 8:
        return make_tiles(8, weight.codes, weight.scales, None)
    codes, scales, offsets = weight.codes, weight.scales, weight.offsets
    assert offsets is not None
    if len(codes) % 2:  # two features to a byte
        codes, scales, offsets = (F.pad(t, (0, 0, 0, 1)) for t in (codes, scales, offsets))
    return make_tiles(4, codes, scales, offsets, gated=gated)

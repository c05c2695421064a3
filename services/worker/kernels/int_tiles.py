"""Weights of 4 and 8 bits in the layout that kernels read, and expanded again for products with many tokens.

A weight is `code * scale + offset`, scale and offset being those of its group along the inputs. Made once, after
loading, by `models/triton_product.py`; read by `int_product.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_EXPAND_BLOCK = 64, 64


@dataclass(frozen=True, slots=True)
class IntTiles:
    """A weight of N outputs and K inputs in the kernels' layout. Made once, after loading."""

    bits: int
    codes: torch.Tensor
    """4 bits: uint8 [N / 2, K], an even feature in the low half of a byte and the odd one after it in the high half, or
    one of gate and one of up; 8 bits: int8 [N, K]."""
    table: torch.Tensor
    """4 bits: int32 [groups, 2, N / 2], of features in low halves first, scale and offset as float16 in the low and
    high half; 8 bits: float32 [groups, N] scales."""
    factor: float
    """What scales and offsets in the table are to be multiplied by: a power of two, so that 16 bits are enough."""
    width: int
    group: int
    """Inputs that share a scale."""
    gated: bool = False
    """Of 4 bits: the first half of the outputs, in low halves of bytes, is the gate of the second."""


def make_tiles(
    bits: int, codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, *, gated: bool = False
) -> IntTiles:
    """Lay a weight out for the kernels.

    Args:
        codes: [N, K] uint8 in 0..15, N even; or int8.
        scales: [N, groups] float32.
        offsets: of the same shape, for 4 bits.
        gated: for 4 bits, of gate and up.
    """
    width, depth = codes.shape
    group = depth // scales.shape[1]
    if bits == 8:
        return IntTiles(8, codes.contiguous(), scales.T.contiguous(), 1.0, width, group)
    assert offsets is not None
    largest = torch.maximum(scales.abs().max(), offsets.abs().max()).clamp_min(torch.finfo(torch.float32).tiny)
    factor = 2.0 ** math.floor(math.log2(float(largest)))
    pairs = torch.stack((scales, offsets), dim=2).div_(factor).half()  # [N, groups, 2]
    words = pairs.contiguous().view(torch.int32).squeeze(2)
    low, high = (slice(width // 2), slice(width // 2, None)) if gated else (slice(0, None, 2), slice(1, None, 2))
    table = torch.stack((words[low].T, words[high].T), dim=1).contiguous()
    return IntTiles(4, codes[low] | codes[high] << 4, table, factor, width, group, gated)


@triton.jit
def halves(word: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Scale and offset in a word of the table, as float32."""
    low = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit(do_not_specialize=["factor"])
def _expand_kernel(
    codes: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    factor: tl.float32,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    depth = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < ROWS)[:, None] & (depth < DEPTH)[None, :]
    tile = tl.load(codes + row.to(tl.int64)[:, None] * DEPTH + depth[None, :], mask=inside)
    group = (depth // GROUP)[None, :]
    dtype = out.dtype.element_ty
    if BITS == 8:
        scale = tl.load(table + group * ROWS + row[:, None], mask=inside, other=0.0).to(tl.float32)
        out_at = out + row.to(tl.int64)[:, None] * DEPTH + depth[None, :]
        tl.store(out_at, (tile.to(tl.float32) * scale).to(dtype), mask=inside)
    else:
        words_at = table + group * 2 * ROWS + row[:, None]
        scale, offset = halves(tl.load(words_at, mask=inside, other=0))
        low_row = row.to(tl.int64) * (1 if GATED else 2)
        out_at = out + low_row[:, None] * DEPTH + depth[None, :]
        FROM_LOW: tl.constexpr = (ROWS if GATED else 1) * DEPTH
        tl.store(out_at, (((tile & 15).to(tl.float32) * scale + offset) * factor).to(dtype), mask=inside)
        scale, offset = halves(tl.load(words_at + ROWS, mask=inside, other=0))
        tl.store(out_at + FROM_LOW, (((tile >> 4).to(tl.float32) * scale + offset) * factor).to(dtype), mask=inside)


def expand(tiles: IntTiles, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] in `dtype`."""
    rows, depth = tiles.codes.shape
    out = torch.empty((tiles.width, depth), dtype=dtype, device=tiles.codes.device)
    block_p, block_k = _EXPAND_BLOCK
    _expand_kernel[(triton.cdiv(rows, block_p), triton.cdiv(depth, block_k))](
        tiles.codes, tiles.table, out, tiles.factor, ROWS=rows, DEPTH=depth, GROUP=tiles.group, BITS=tiles.bits,
        GATED=tiles.gated, BLOCK_P=block_p, BLOCK_K=block_k, num_warps=4,
    )  # fmt: skip
    return out

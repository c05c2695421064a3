"""Activations to 8-bit floats, each token with a scale of its own.

Called by `models/triton_product.py` before a product of two 8-bit matrices. Kernels whose results are read by such a
product call `store_rounded` instead of storing them (`rms_norm.py`, `silu_and_mul.py`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.overlap import let_the_next_begin, overlap, wait_for_the_one_before
from services.worker.quantization.rounded import Activations, Fp8Rows, unfilled_rows

FP8 = torch.float8_e4m3fn
MOST = torch.finfo(FP8).max
_MOST = tl.constexpr(MOST)
_LEAST_LARGEST = tl.constexpr(1e-12)
"""Rows of zeros have a scale too."""
WIDEST = 16384
"""Values kept in registers between finding the largest and rounding."""
_WARP_VALUES = 512


@triton.jit
def _scale(largest: tl.tensor) -> tl.tensor:
    return tl.maximum(tl.max(largest, axis=0), _LEAST_LARGEST) / _MOST


@triton.jit
def _rounded(value: tl.tensor, scale: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    return tl.minimum(tl.maximum(value / scale, -_MOST), _MOST).to(dtype)


@triton.jit
def store_rounded(value: tl.tensor, codes: tl.tensor, scale_at: tl.tensor, WIDTH: tl.constexpr) -> None:
    """A row of one token in registers.

    Args:
        value: [at least WIDTH] of any float, as a kernel that does not round would store it.
        codes: pointer to the row, e4m3.
        scale_at: pointer to fp32.
    """
    column = tl.arange(0, value.shape[0])
    inside = column < WIDTH
    scale = _scale(tl.where(inside, tl.abs(value.to(tl.float32)), 0.0))
    tl.store(scale_at, scale)
    # A thread may store 16 codes, but the compiler would then give it 16 neighbouring values from the loads on, and a
    # sum over the row would be another one than in a kernel that does not round.
    codes_at = tl.max_contiguous(codes + column, [128 // value.dtype.primitive_bitwidth])
    tl.store(codes_at, _rounded(value.to(tl.float32), scale, codes.dtype.element_ty), mask=inside)


@triton.jit
def _fp8_rows_kernel(
    x: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    x_stride: tl.int64,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    begin = tl.load(x + token * x_stride + column, mask=column < WIDTH, other=0.0).to(tl.float32)  # read once
    largest = tl.abs(begin)
    for start in range(BLOCK, WIDTH, BLOCK):
        value = tl.load(x + token * x_stride + start + column, mask=start + column < WIDTH, other=0.0)
        largest = tl.maximum(largest, tl.abs(value.to(tl.float32)))
    scale = _scale(largest)
    tl.store(scales + token, scale)
    tl.store(out + token * WIDTH + column, _rounded(begin, scale, out.dtype.element_ty), mask=column < WIDTH)
    for start in range(BLOCK, WIDTH, BLOCK):
        inside = start + column < WIDTH
        value = tl.load(x + token * x_stride + start + column, mask=inside, other=0.0).to(tl.float32)
        rounded = _rounded(value, scale, out.dtype.element_ty)
        tl.store(out + token * WIDTH + start + column, rounded, mask=inside)


def fp8_rows(x: torch.Tensor) -> Fp8Rows:
    """Rows of x [T, K], last dimension contiguous; what is wider than `WIDEST` is read twice."""
    assert x.stride(1) == 1
    tokens, width = x.shape
    out = unfilled_rows(x, width)
    if tokens:
        block = min(WIDEST, triton.next_power_of_2(width))
        _fp8_rows_kernel[(tokens,)](
            x, out.codes, out.scales, x.stride(0), WIDTH=width, BLOCK=block, num_warps=row_warps(block),
            **overlap(x.device),
        )  # fmt: skip
    return out


def row_warps(block: int) -> int:
    """Of a program that keeps a row of `block` values."""
    return min(16, max(4, block // _WARP_VALUES))


def target(out: Activations) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """For a kernel that can round: where rows and their scales go, and whether they are rounded."""
    return (out.codes, out.scales, True) if isinstance(out, Fp8Rows) else (out, out, False)

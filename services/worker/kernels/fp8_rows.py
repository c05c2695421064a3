"""Activations to 8-bit floats, each token with a scale of its own.

Called by `models/triton_product.py` before a product of two 8-bit matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.overlap import let_the_next_begin, overlap, wait_for_the_one_before

FP8 = torch.float8_e4m3fn
MOST = torch.finfo(FP8).max
_BLOCK = 16384
"""Values kept in registers between finding the largest and rounding; the rest of a row is read again."""
_WARP_VALUES = 512


@triton.jit
def _rounded(value: tl.tensor, scale: tl.tensor, MOST: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    return tl.minimum(tl.maximum(value / scale, -MOST), MOST).to(dtype)


@triton.jit
def _fp8_rows_kernel(
    x: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    x_stride: tl.int64,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MOST: tl.constexpr,
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
    scale = tl.maximum(tl.max(largest, axis=0), 1e-12) / MOST
    tl.store(scales + token, scale)
    tl.store(out + token * WIDTH + column, _rounded(begin, scale, MOST, out.dtype.element_ty), mask=column < WIDTH)
    for start in range(BLOCK, WIDTH, BLOCK):
        inside = start + column < WIDTH
        value = tl.load(x + token * x_stride + start + column, mask=inside, other=0.0).to(tl.float32)
        rounded = _rounded(value, scale, MOST, out.dtype.element_ty)
        tl.store(out + token * WIDTH + start + column, rounded, mask=inside)


def fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of x [T, K] (last dimension contiguous) as e4m3 [T, K] and the scales [T, 1] float32 to multiply them by."""
    assert x.stride(1) == 1
    tokens, width = x.shape
    out = torch.empty((tokens, width), dtype=FP8, device=x.device)
    scales = torch.empty((tokens, 1), dtype=torch.float32, device=x.device)
    if tokens:
        block = min(_BLOCK, triton.next_power_of_2(width))
        _fp8_rows_kernel[(tokens,)](
            x, out, scales, x.stride(0), WIDTH=width, BLOCK=block, MOST=MOST,
            num_warps=min(16, max(4, block // _WARP_VALUES)),
            **overlap(x.device),
        )  # fmt: skip
    return out, scales

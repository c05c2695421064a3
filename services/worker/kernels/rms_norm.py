"""RMSNorm: plain, fused with the residual add, and per head (QK-norm).

Arithmetic is fp32 whatever the tensors hold, rounded once at the store, and to 8 bits after that where the result is
to be `Fp8Rows`. Called by the model layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.fp8_rows import store_rounded, target
from services.worker.kernels.overlap import let_the_next_begin, overlap, wait_for_the_one_before
from services.worker.quantization.rounded import Activations


@triton.jit
def _store_norm(
    value: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scale_at: tl.tensor,
    eps: tl.float32,
    dtype: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
) -> None:
    """The norm of one row, value [BLOCK] fp32, in `dtype` or rounded from there to the row `out`."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps)
    normed = (value * scale * gain).to(dtype)
    if ROUNDS:
        store_rounded(normed, out, scale_at, WIDTH)
    else:
        tl.store(out + column, normed, mask=inside)


@triton.jit
def _rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    x_stride: tl.int64,
    out_stride: tl.int64,
    eps: tl.float32,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    value = tl.load(x + row * x_stride + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    out_at, scale_at = out + row * out_stride, scales + row
    _store_norm(value, weight, out_at, scale_at, eps, x.dtype.element_ty, WIDTH, BLOCK, ROUNDS)


@triton.jit
def _add_rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    x_stride: tl.int64,
    residual_stride: tl.int64,
    out_stride: tl.int64,
    eps: tl.float32,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    residual_at = residual + row * residual_stride + column
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(residual_at, mask=inside, other=0.0).to(tl.float32)
    stored = value.to(residual.dtype.element_ty)
    tl.store(residual_at, stored, mask=inside)
    value = stored.to(tl.float32)  # the norm sees the rounded sum, as the unfused layers do
    out_at, scale_at = out + row * out_stride, scales + row
    _store_norm(value, weight, out_at, scale_at, eps, x.dtype.element_ty, WIDTH, BLOCK, ROUNDS)


@triton.jit
def _head_rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    token_stride: tl.int64,
    head_stride: tl.int64,
    num_heads: tl.int32,
    eps: tl.float32,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK)
    inside = (head < num_heads)[:, None] & (column < WIDTH)[None, :]
    at = x + token * token_stride + head[:, None] * head_stride + column[None, :]
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / WIDTH + eps)
    tl.store(at, (value * scale[:, None] * gain[None, :]).to(x.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: Activations) -> None:
    """Root-mean-square norm of each row, times `weight`.

    Args:
        x: [T, N] fp32, fp16 or bf16; rows may be strided, the last dimension is contiguous.
        weight: [N].
        out: [T, N] where to write, rounded to 8 bits or in the dtype of `x`; may be `x`.
    """
    assert x.stride(-1) == 1
    assert weight.is_contiguous()
    tokens, width = x.shape
    if tokens:
        block = triton.next_power_of_2(width)
        into, scales, rounds = target(out)
        _rms_norm_kernel[(tokens,)](
            x, weight, into, scales, x.stride(0), into.stride(0), eps,
            WIDTH=width, BLOCK=block, ROUNDS=rounds, num_warps=_row_warps(block), **overlap(x.device),
        )  # fmt: skip


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: Activations) -> None:
    """`residual += x` in place, then `out = rms_norm(residual)`.

    Args:
        x, residual: [T, N], last dimension contiguous.
        weight: [N].
        out: as of `rms_norm`; may be `x`.
    """
    assert x.shape == residual.shape
    assert x.stride(-1) == residual.stride(-1) == 1
    tokens, width = x.shape
    if tokens:
        block = triton.next_power_of_2(width)
        into, scales, rounds = target(out)
        _add_rms_norm_kernel[(tokens,)](
            x, residual, weight, into, scales, x.stride(0), residual.stride(0), into.stride(0), eps,
            WIDTH=width, BLOCK=block, ROUNDS=rounds, num_warps=_row_warps(block), **overlap(x.device),
        )  # fmt: skip


def head_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """RMSNorm of every head in place (QK-norm where rotary does not follow; else see `rotary.rotate_and_store`).

    Args:
        x: [T, H, D], a view into a fused projection is fine, the last dimension is contiguous.
        weight: [D].
    """
    assert x.stride(-1) == 1
    tokens, num_heads, width = x.shape
    if tokens:
        heads = min(8, triton.next_power_of_2(num_heads))
        _head_rms_norm_kernel[(tokens, triton.cdiv(num_heads, heads))](
            x, weight, x.stride(0), x.stride(1), num_heads, eps,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), HEADS=heads, num_warps=4,
            **overlap(x.device),
        )  # fmt: skip


def _row_warps(block: int) -> int:
    """16 elements a thread: two 16-byte loads of bf16 in flight per tensor."""
    return max(1, min(16, block // 512))

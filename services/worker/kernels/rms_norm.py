"""RMSNorm: plain, fused with the residual add, and per head (QK-norm).

Arithmetic is fp32 whatever the tensors hold, rounded once at the store. Called by the model layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.overlap import let_the_next_begin, overlap, wait_for_the_one_before


@triton.jit
def _rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    x_stride: tl.int64,
    out_stride: tl.int64,
    eps: tl.float32,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps)
    tl.store(out + row * out_stride + column, (value * scale * gain).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    x_stride: tl.int64,
    residual_stride: tl.int64,
    eps: tl.float32,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x_at = x + row * x_stride + column
    residual_at = residual + row * residual_stride + column
    value = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(residual_at, mask=inside, other=0.0).to(tl.float32)
    stored = value.to(residual.dtype.element_ty)
    tl.store(residual_at, stored, mask=inside)
    value = stored.to(tl.float32)  # the norm sees the rounded sum, as the unfused layers do
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps)
    tl.store(x_at, (value * scale * gain).to(x.dtype.element_ty), mask=inside)


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


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """Root-mean-square norm of each row, times `weight`.

    Args:
        x: [T, N] fp32, fp16 or bf16; rows may be strided, the last dimension is contiguous.
        weight: [N].
        out: [T, N] where to write; a new tensor when None; may be `x`.
    """
    assert x.stride(-1) == 1
    assert weight.is_contiguous()
    out = torch.empty_like(x) if out is None else out
    tokens, width = x.shape
    if tokens:
        block = triton.next_power_of_2(width)
        _rms_norm_kernel[(tokens,)](
            x, weight, out, x.stride(0), out.stride(0), eps,
            WIDTH=width, BLOCK=block, num_warps=_row_warps(block), **overlap(x.device),
        )  # fmt: skip
    return out


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """`residual += x`, then `x = rms_norm(residual)`, both in place.

    Args:
        x, residual: [T, N], last dimension contiguous.
        weight: [N].
    """
    assert x.shape == residual.shape
    assert x.stride(-1) == residual.stride(-1) == 1
    tokens, width = x.shape
    if tokens:
        block = triton.next_power_of_2(width)
        _add_rms_norm_kernel[(tokens,)](
            x, residual, weight, x.stride(0), residual.stride(0), eps,
            WIDTH=width, BLOCK=block, num_warps=_row_warps(block), **overlap(x.device),
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

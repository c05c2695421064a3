"""Rotary embedding (neox halves) of q and k, optional QK-norm before it, and the write of k and v into the KV pool.

One kernel over the fused qkv projection: q is rotated in place, k goes rotated to the pool and v as it is; k and v in
the projection stay untouched, since attention reads the pool alone. Called by the attention layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS
from services.worker.kernels.overlap import overlap, wait_for_the_one_before

HEADS_PER_PROGRAM = 8


@triton.jit
def _rotated_halves(
    at: tl.tensor,
    inside: tl.tensor,
    weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    half: tl.tensor,
    half_inside: tl.tensor,
    eps: tl.float32,
    HEAD_DIM: tl.constexpr,
    NORM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Heads at `at` [HEADS, HALF], normalised if asked, rotated: both halves in fp32."""
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / HEAD_DIM + eps)
        gain_low = tl.load(weight + half, mask=half_inside, other=0.0).to(tl.float32)
        gain_high = tl.load(weight + HEAD_DIM // 2 + half, mask=half_inside, other=0.0).to(tl.float32)
        low = low * scale[:, None] * gain_low[None, :]
        high = high * scale[:, None] * gain_high[None, :]
    return low * cos[None, :] - high * sin[None, :], high * cos[None, :] + low * sin[None, :]


@triton.jit(do_not_specialize_on_alignment=INDEX_POINTERS)
def _rotate_and_store_kernel(
    qkv: tl.tensor,
    positions: tl.tensor,
    cos_sin: tl.tensor,
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    out_cache_loc: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    eps: tl.float32,
    k_unit: tl.float32,
    v_unit: tl.float32,
    qkv_stride: tl.int64,
    pool_stride: tl.int64,
    NUM_Q_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts = (NUM_Q_HEADS + HEADS - 1) // HEADS
    half = tl.arange(0, HALF_BLOCK)
    half_inside = half < HEAD_DIM // 2
    position = tl.load(positions + token).to(tl.int64)
    cos = tl.load(cos_sin + position * HEAD_DIM + half, mask=half_inside, other=0.0).to(tl.float32)
    sin = tl.load(cos_sin + position * HEAD_DIM + HEAD_DIM // 2 + half, mask=half_inside, other=0.0).to(tl.float32)
    base = qkv + token * qkv_stride
    if part < q_parts:
        head = part * HEADS + tl.arange(0, HEADS)
        inside = (head < NUM_Q_HEADS)[:, None] & half_inside[None, :]
        at = base + head[:, None] * HEAD_DIM + half[None, :]
        low, high = _rotated_halves(at, inside, q_weight, cos, sin, half, half_inside, eps, HEAD_DIM, NORM)
        tl.store(at, low.to(qkv.dtype.element_ty), mask=inside)
        tl.store(at + HEAD_DIM // 2, high.to(qkv.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(out_cache_loc + token).to(tl.int64)
        head = (part - q_parts) * HEADS + tl.arange(0, HEADS)
        stored_heads = tl.where(slot >= 0, NUM_KV_HEADS, 0)  # padding tokens store nothing
        inside = (head < stored_heads)[:, None] & half_inside[None, :]
        k_at = base + (NUM_Q_HEADS + head[:, None]) * HEAD_DIM + half[None, :]
        low, high = _rotated_halves(k_at, inside, k_weight, cos, sin, half, half_inside, eps, HEAD_DIM, NORM)
        pool_at = slot * pool_stride + head[:, None] * HEAD_DIM + half[None, :]
        tl.store(k_pool + pool_at, (low * k_unit).to(k_pool.dtype.element_ty), mask=inside)
        tl.store(k_pool + pool_at + HEAD_DIM // 2, (high * k_unit).to(k_pool.dtype.element_ty), mask=inside)
        v_at = k_at + NUM_KV_HEADS * HEAD_DIM
        low = tl.load(v_at, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(v_at + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
        tl.store(v_pool + pool_at, (low * v_unit).to(v_pool.dtype.element_ty), mask=inside)
        tl.store(v_pool + pool_at + HEAD_DIM // 2, (high * v_unit).to(v_pool.dtype.element_ty), mask=inside)


def rotate_and_store(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    out_cache_loc: torch.Tensor,
    num_q_heads: int,
    qk_norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Rotate q in place, write rotated k and plain v into the pools.

    Args:
        qkv: [T, (H + 2 * G) * D], heads of q, then k, then v; rows may be strided.
        positions: [T] int32 or int64.
        cos_sin: [max_pos, D] contiguous: cos of the D/2 frequencies, then sin; fp32 keeps long contexts exact.
        k_pool, v_pool: [num_slots, G, D] of one layer, last two dimensions contiguous, equal strides.
        out_cache_loc: [T] slot of each token, int32 or int64; negative = padding, nothing is written.
        qk_norm: (q weight [D], k weight [D], eps) of an RMSNorm per head before the rotation.
        k_scale, v_scale: the pools hold k / k_scale and v / v_scale (fp8 pools).
    """
    num_kv_heads, head_dim = k_pool.shape[-2:]
    assert qkv.shape[1] == (num_q_heads + 2 * num_kv_heads) * head_dim
    assert qkv.stride(1) == 1
    assert k_pool.stride() == v_pool.stride()
    assert k_pool.stride(1) == head_dim
    assert cos_sin.stride(0) == head_dim
    if qkv.shape[0] == 0:
        return
    heads = min(HEADS_PER_PROGRAM, triton.next_power_of_2(num_q_heads))
    q_weight, k_weight, eps = qk_norm or (cos_sin, cos_sin, 0.0)
    _rotate_and_store_kernel[(qkv.shape[0], triton.cdiv(num_q_heads, heads) + triton.cdiv(num_kv_heads, heads))](
        qkv, positions, cos_sin, k_pool, v_pool, out_cache_loc, q_weight, k_weight,
        eps, 1.0 / k_scale, 1.0 / v_scale, qkv.stride(0), k_pool.stride(0),
        NUM_Q_HEADS=num_q_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        HALF_BLOCK=triton.next_power_of_2(head_dim // 2), HEADS=heads, NORM=qk_norm is not None, num_warps=2,
        **overlap(qkv.device),
    )  # fmt: skip

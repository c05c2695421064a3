"""Rotary positions of a vision transformer, on queries and keys in place. Called by `models/qwen_vit.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rotate_heads_kernel(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    stride: tl.int64,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (pair < HALF)
    angle = token * HALF + pair
    c = tl.load(cos + angle, mask=pair < HALF, other=0.0)
    s = tl.load(sin + angle, mask=pair < HALF, other=0.0)
    at = qkv + token * stride + head * (2 * HALF) + pair
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (first * c - second * s).to(qkv.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (second * c + first * s).to(qkv.dtype.element_ty), mask=inside)


def rotate_heads_(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn the queries and keys of every token, in place; the values stay.

    Args:
        qkv: [N, 3, H, D], a token's numbers one after another.
        cos, sin: [N, D / 2] fp32; the two halves of D are the two coordinates.
    """
    tokens, _, heads, dim = qkv.shape
    assert qkv.stride()[1:] == (heads * dim, dim, 1)
    assert cos.shape == sin.shape == (tokens, dim // 2)
    if tokens:
        _rotate_heads_kernel[(tokens,)](
            qkv, cos, sin, qkv.stride(0), HEADS=2 * heads, HALF=dim // 2,
            HEADS_BLOCK=triton.next_power_of_2(2 * heads), HALF_BLOCK=triton.next_power_of_2(dim // 2), num_warps=4,
        )  # fmt: skip

"""Norm per head (if asked), rotary embedding, and the write of keys and values into the pool: one pass over q, k, v."""

from __future__ import annotations

import numpy as np
from numba import prange

from services.worker.cpu_kernels.jit import inner, kernel

SERIAL_ELEMENTS = 1 << 16
"""Below this one thread is done before a second has begun."""
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@kernel
def rotate_and_store(
    qkv: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    pool: np.ndarray,
    slots: np.ndarray,
    num_q_heads: int,
    normed: bool,
    q_weight: np.ndarray,
    k_weight: np.ndarray,
    eps: np.float32,
) -> None:
    """Turn q and k in place, store k and v.

    Args:
        qkv: [T, (H + 2 * G) * D] fp32, query heads first, then keys, then values.
        cos, sin: [T, D] fp32; the first half of `sin` is negated (`Rotary.angles`).
        pool: [slots, 2, G, D] fp32.
        slots: [T] int64.
        normed: norm heads before they are turned, with q_weight and k_weight [D] fp32, else not looked at.
    """
    if qkv.size < SERIAL_ELEMENTS:
        for t in range(qkv.shape[0]):
            _token(qkv[t], cos[t], sin[t], pool[slots[t]], num_q_heads, normed, q_weight, k_weight, eps)
    else:
        for t in prange(qkv.shape[0]):
            _token(qkv[t], cos[t], sin[t], pool[slots[t]], num_q_heads, normed, q_weight, k_weight, eps)


@inner
def _token(qkv, cos, sin, stored, num_q_heads, normed, q_weight, k_weight, eps):  # type: ignore[no-untyped-def]
    groups, dim = stored.shape[1], stored.shape[2]
    half = dim // 2
    for h in range(num_q_heads + groups):
        head = qkv[h * dim : (h + 1) * dim]
        if normed:
            squares = _ZERO
            for d in range(dim):
                squares += head[d] * head[d]
            factor = _ONE / np.sqrt(squares / np.float32(dim) + eps)
            weight = q_weight if h < num_q_heads else k_weight
            for d in range(dim):
                head[d] *= factor * weight[d]
        for d in range(half):
            low, high = head[d], head[half + d]
            head[d] = low * cos[d] + high * sin[d]
            head[half + d] = high * cos[half + d] + low * sin[half + d]
    keys, values = num_q_heads * dim, (num_q_heads + groups) * dim
    for g in range(groups):
        for d in range(dim):
            stored[0, g, d] = qkv[keys + g * dim + d]
            stored[1, g, d] = qkv[values + g * dim + d]

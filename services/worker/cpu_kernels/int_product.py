"""Products with weights of 4 and 8 bits, which are expanded in registers: few tokens cost what reading the codes costs.

A weight is `code * scale + offset` of its group along the inputs. Tokens go four at a time, so that a code is converted
once for all of them; many tokens are cheaper with an expanded weight and a dense product.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from services.worker.cpu_kernels.intrinsics import prefetch
from services.worker.cpu_kernels.jit import inner, kernel
from services.worker.cpu_kernels.vectors import (
    LANES,
    add_product,
    high_halves,
    load_codes,
    load_floats,
    load_signed,
    low_halves,
    spread,
    sum_of,
    zeros,
)

PAIRS_PER_TASK = 16
"""Pairs of features that a thread takes at a time."""
AHEAD, CACHE_LINE = 8, 64
"""Pairs of features whose codes are asked of the memory in advance; bytes."""
_ZERO = np.float32(0.0)
_LOW, _FOUR = np.int32(15), np.int32(4)


@kernel
def int4_product(x: np.ndarray, codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """x [T, K] times the transpose of a weight [N, K] to out [T, N]; all contiguous, x and out fp32.

    Inputs of a group are a multiple of LANES.

    Args:
        codes: [N / 2, K] uint8, the even feature in the low half of a byte, the odd one after it in the high half.
        scales, offsets: [N, G] fp32 of G groups of inputs.
    """
    tokens, pairs = x.shape[0], codes.shape[0]
    for task in prange((pairs + PAIRS_PER_TASK - 1) // PAIRS_PER_TASK):
        for p in range(task * PAIRS_PER_TASK, min(pairs, (task + 1) * PAIRS_PER_TASK)):
            for k in range(0, codes.shape[1], CACHE_LINE):
                prefetch(codes, (p + AHEAD) * codes.shape[1] + k)
            for g in range(0, 2 * scales.shape[1], CACHE_LINE // 4):
                prefetch(scales, 2 * (p + AHEAD) * scales.shape[1] + g)
                prefetch(offsets, 2 * (p + AHEAD) * scales.shape[1] + g)
            for four in range(tokens // 4):
                _int4_four(x, 4 * four, codes, p, scales, offsets, out)
            for t in range(tokens // 4 * 4, tokens):
                _int4_one(x, t, codes, p, scales, offsets, out)


@kernel
def int8_product(x: np.ndarray, codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """As `int4_product`, of codes [N, K] int8 without offsets."""
    tokens, width = x.shape[0], codes.shape[0]
    per_task = 2 * PAIRS_PER_TASK
    for task in prange((width + per_task - 1) // per_task):
        for n in range(task * per_task, min(width, (task + 1) * per_task)):
            for k in range(0, codes.shape[1], CACHE_LINE):
                prefetch(codes, (n + 2 * AHEAD) * codes.shape[1] + k)
            for four in range(tokens // 4):
                _int8_four(x, 4 * four, codes, n, scales, out)
            for t in range(tokens // 4 * 4, tokens):
                _int8_one(x, t, codes, n, scales, out)


@kernel
def expand4(codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """Codes [P, G, group] of P pairs of features, scales and offsets [P, 2, G], to weights [P, 2, G, group] fp32."""
    for p in prange(codes.shape[0]):
        for g in range(codes.shape[1]):
            scale, offset = scales[p, 0, g], offsets[p, 0, g]
            scale_odd, offset_odd = scales[p, 1, g], offsets[p, 1, g]
            for k in range(codes.shape[2]):
                code = np.int32(codes[p, g, k])
                out[p, 0, g, k] = np.float32(code & _LOW) * scale + offset
                out[p, 1, g, k] = np.float32(code >> _FOUR) * scale_odd + offset_odd


@kernel
def expand8(codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """Codes [N, G, group] int8 and scales [N, G] to weights [N, G, group] fp32."""
    for n in prange(codes.shape[0]):
        for g in range(codes.shape[1]):
            for k in range(codes.shape[2]):
                out[n, g, k] = np.float32(codes[n, g, k]) * scales[n, g]


@inner
def _int4_one(x, t, codes, p, scales, offsets, out):  # type: ignore[no-untyped-def]
    depth, groups = codes.shape[1], scales.shape[1]
    group, n = depth // groups, 2 * p
    even, odd = zeros(), zeros()
    for g in range(groups):
        scale, offset = spread(scales[n, g]), spread(offsets[n, g])
        scale_odd, offset_odd = spread(scales[n + 1, g]), spread(offsets[n + 1, g])
        for k in range(g * group, (g + 1) * group, LANES):
            code = load_codes(codes, p * depth + k)
            inputs = load_floats(x, t * depth + k)
            even = add_product(even, add_product(offset, low_halves(code), scale), inputs)
            odd = add_product(odd, add_product(offset_odd, high_halves(code), scale_odd), inputs)
    out[t, n], out[t, n + 1] = sum_of(even), sum_of(odd)


@inner
def _int4_four(x, t, codes, p, scales, offsets, out):  # type: ignore[no-untyped-def]
    depth, groups = codes.shape[1], scales.shape[1]
    group, n = depth // groups, 2 * p
    e0, e1, e2, e3, o0, o1, o2, o3 = zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
    for g in range(groups):
        scale, offset = spread(scales[n, g]), spread(offsets[n, g])
        scale_odd, offset_odd = spread(scales[n + 1, g]), spread(offsets[n + 1, g])
        for k in range(g * group, (g + 1) * group, LANES):
            code = load_codes(codes, p * depth + k)
            even = add_product(offset, low_halves(code), scale)
            odd = add_product(offset_odd, high_halves(code), scale_odd)
            inputs = load_floats(x, t * depth + k)
            e0, o0 = add_product(e0, even, inputs), add_product(o0, odd, inputs)
            inputs = load_floats(x, (t + 1) * depth + k)
            e1, o1 = add_product(e1, even, inputs), add_product(o1, odd, inputs)
            inputs = load_floats(x, (t + 2) * depth + k)
            e2, o2 = add_product(e2, even, inputs), add_product(o2, odd, inputs)
            inputs = load_floats(x, (t + 3) * depth + k)
            e3, o3 = add_product(e3, even, inputs), add_product(o3, odd, inputs)
    out[t, n], out[t + 1, n], out[t + 2, n], out[t + 3, n] = sum_of(e0), sum_of(e1), sum_of(e2), sum_of(e3)
    n += 1
    out[t, n], out[t + 1, n], out[t + 2, n], out[t + 3, n] = sum_of(o0), sum_of(o1), sum_of(o2), sum_of(o3)


@inner
def _int8_one(x, t, codes, n, scales, out):  # type: ignore[no-untyped-def]
    depth, groups = codes.shape[1], scales.shape[1]
    group = depth // groups
    total = zeros()
    for g in range(groups):
        part, scale = zeros(), spread(scales[n, g])
        for k in range(g * group, (g + 1) * group, LANES):
            part = add_product(part, load_signed(codes, n * depth + k), load_floats(x, t * depth + k))
        total = add_product(total, part, scale)
    out[t, n] = sum_of(total)


@inner
def _int8_four(x, t, codes, n, scales, out):  # type: ignore[no-untyped-def]
    depth, groups = codes.shape[1], scales.shape[1]
    group = depth // groups
    s0, s1, s2, s3 = zeros(), zeros(), zeros(), zeros()
    for g in range(groups):
        scale = spread(scales[n, g])
        for k in range(g * group, (g + 1) * group, LANES):
            weight = add_product(zeros(), load_signed(codes, n * depth + k), scale)
            s0 = add_product(s0, weight, load_floats(x, t * depth + k))
            s1 = add_product(s1, weight, load_floats(x, (t + 1) * depth + k))
            s2 = add_product(s2, weight, load_floats(x, (t + 2) * depth + k))
            s3 = add_product(s3, weight, load_floats(x, (t + 3) * depth + k))
    out[t, n], out[t + 1, n], out[t + 2, n], out[t + 3, n] = sum_of(s0), sum_of(s1), sum_of(s2), sum_of(s3)

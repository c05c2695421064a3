"""Products with weights of 4 and 8 bits, which are expanded in registers: few tokens cost what reading the codes costs.

A weight is `code * scale + offset` of its group along the inputs. Inputs are multiplied by codes; a group's scale
multiplies the sum, and its offset the sum of the group's inputs. Tokens go four at a time, so that a code is converted
once for all of them; many tokens are cheaper with `expand` and a dense product.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from services.worker.cpu_kernels.jit import inner, kernel

PAIRS_PER_TASK = 16
"""Pairs of features that a thread takes at a time."""
_ZERO = np.float32(0.0)
_LOW, _FOUR = np.int32(15), np.int32(4)


@kernel
def int4_product(x: np.ndarray, codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """The inputs times the transpose of a weight [N, K], to out [T, N] fp32. K = G * group.

    Args:
        x: [T, G, group] fp32.
        codes: [N / 2, G, group] uint8, the even feature in the low half of a byte, the odd one after it in the high.
        scales, offsets: [N / 2, 2, G] fp32.
    """
    tokens, pairs, groups = x.shape[0], codes.shape[0], x.shape[1]
    sums = np.empty((tokens, groups), np.float32)
    for t in range(tokens):
        for g in range(groups):
            sums[t, g] = _sum(x[t, g])
    for task in prange((pairs + PAIRS_PER_TASK - 1) // PAIRS_PER_TASK):
        for p in range(task * PAIRS_PER_TASK, min(pairs, (task + 1) * PAIRS_PER_TASK)):
            for four in range(tokens // 4):
                _int4_four(x, 4 * four, codes[p], scales[p], offsets[p], sums, out, 2 * p)
            for t in range(tokens // 4 * 4, tokens):
                _int4_one(x[t], codes[p], scales[p], offsets[p], sums[t], out[t], 2 * p)


@kernel
def int8_product(x: np.ndarray, codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """As `int4_product`, of codes [N, G, group] int8 and scales [N, G], without offsets."""
    tokens, width = x.shape[0], codes.shape[0]
    per_task = 2 * PAIRS_PER_TASK
    for task in prange((width + per_task - 1) // per_task):
        for n in range(task * per_task, min(width, (task + 1) * per_task)):
            for four in range(tokens // 4):
                _int8_four(x, 4 * four, codes[n], scales[n], out, n)
            for t in range(tokens // 4 * 4, tokens):
                out[t, n] = _int8_one(x[t], codes[n], scales[n])


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
def _sum(x):  # type: ignore[no-untyped-def]
    total = _ZERO
    for k in range(x.shape[0]):
        total += x[k]
    return total


@inner
def _int4_one(x, codes, scales, offsets, sums, out, at):  # type: ignore[no-untyped-def]
    even, odd = _ZERO, _ZERO
    for g in range(codes.shape[0]):
        low, high = _ZERO, _ZERO
        for k in range(codes.shape[1]):
            code = np.int32(codes[g, k])
            low += np.float32(code & _LOW) * x[g, k]
            high += np.float32(code >> _FOUR) * x[g, k]
        even += low * scales[0, g] + sums[g] * offsets[0, g]
        odd += high * scales[1, g] + sums[g] * offsets[1, g]
    out[at], out[at + 1] = even, odd


@inner
def _int4_four(x, t, codes, scales, offsets, sums, out, at):  # type: ignore[no-untyped-def]
    e0, e1, e2, e3, o0, o1, o2, o3 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for g in range(codes.shape[0]):
        l0, l1, l2, l3, h0, h1, h2, h3 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
        for k in range(codes.shape[1]):
            code = np.int32(codes[g, k])
            low, high = np.float32(code & _LOW), np.float32(code >> _FOUR)
            l0 += low * x[t, g, k]
            h0 += high * x[t, g, k]
            l1 += low * x[t + 1, g, k]
            h1 += high * x[t + 1, g, k]
            l2 += low * x[t + 2, g, k]
            h2 += high * x[t + 2, g, k]
            l3 += low * x[t + 3, g, k]
            h3 += high * x[t + 3, g, k]
        scale, offset = scales[0, g], offsets[0, g]
        e0 += l0 * scale + sums[t, g] * offset
        e1 += l1 * scale + sums[t + 1, g] * offset
        e2 += l2 * scale + sums[t + 2, g] * offset
        e3 += l3 * scale + sums[t + 3, g] * offset
        scale, offset = scales[1, g], offsets[1, g]
        o0 += h0 * scale + sums[t, g] * offset
        o1 += h1 * scale + sums[t + 1, g] * offset
        o2 += h2 * scale + sums[t + 2, g] * offset
        o3 += h3 * scale + sums[t + 3, g] * offset
    out[t, at], out[t + 1, at], out[t + 2, at], out[t + 3, at] = e0, e1, e2, e3
    out[t, at + 1], out[t + 1, at + 1], out[t + 2, at + 1], out[t + 3, at + 1] = o0, o1, o2, o3


@inner
def _int8_one(x, codes, scales):  # type: ignore[no-untyped-def]
    total = _ZERO
    for g in range(codes.shape[0]):
        part = _ZERO
        for k in range(codes.shape[1]):
            part += np.float32(codes[g, k]) * x[g, k]
        total += part * scales[g]
    return total


@inner
def _int8_four(x, t, codes, scales, out, n):  # type: ignore[no-untyped-def]
    s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
    for g in range(codes.shape[0]):
        p0, p1, p2, p3 = _ZERO, _ZERO, _ZERO, _ZERO
        for k in range(codes.shape[1]):
            code = np.float32(codes[g, k])
            p0 += code * x[t, g, k]
            p1 += code * x[t + 1, g, k]
            p2 += code * x[t + 2, g, k]
            p3 += code * x[t + 3, g, k]
        scale = scales[g]
        s0 += p0 * scale
        s1 += p1 * scale
        s2 += p2 * scale
        s3 += p3 * scale
    out[t, n], out[t + 1, n], out[t + 2, n], out[t + 3, n] = s0, s1, s2, s3

"""Attention of decode rows over the paged KV pool, read in place.

The tokens that all rows see, laid end to end in blocks, are cut into one part per thread: long and short rows cost
what they are long, and one long row keeps all threads busy. A row that a cut goes through is attended to in pieces,
each with its own softmax, which are merged at the end (flash-decoding). Within a part a block of tokens is scored
against the query heads of a KV head, four tokens at a time, then added to their sums. Memory is the limit, so the next
block is always on its way: its keys are asked for between the scores, its values between the sums.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from services.worker.cpu_kernels.exponential import exp
from services.worker.cpu_kernels.intrinsics import prefetch
from services.worker.cpu_kernels.jit import Kernel, inner, kernel

BLOCK = 16
"""Tokens scored together: a vector register of scores."""
LEAST_BLOCKS = 6
"""Blocks worth a thread of their own."""
_LINE = 16
"""Floats of a cache line."""
_NEVER = np.float32(-1e30)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def parts_for(seq_lens: np.ndarray, window: int, threads: int) -> int:
    """Threads that rows of these lengths [N] are worth."""
    seen = np.minimum(seq_lens, window) if window else seq_lens
    return max(1, min(threads, int(seen.sum()) // (BLOCK * LEAST_BLOCKS)))


@functools.cache
def decode_kernel(dim: int) -> Kernel:
    """The kernel `decode_attention` for heads of `dim` elements, a constant in its machine code."""

    @kernel
    def decode_attention(
        qkv: np.ndarray,
        pool: np.ndarray,
        page_table: np.ndarray,
        rows: np.ndarray,
        seq_lens: np.ndarray,
        out: np.ndarray,
        first: int,
        page_size: int,
        window: int,
        cut: np.ndarray,
    ) -> None:
        """Attend with one query per row; writes `out[first : first + N]`.

        Args:
            qkv: [T, (H + 2 * G) * D] fp32, query heads first, turned; the queries are those of tokens first..first+N.
            pool: [slots, 2, G, D] fp32, keys before values; holds the keys and values of the new tokens too.
            page_table: [rows, pages] int32.
            rows, seq_lens: [N] int64, row of the page table and tokens in it, at least one.
            out: [T, H, D] fp32.
            window: tokens that a query sees, itself included; 0 = all.
            cut: [1] int64, parts to cut the work into (`parts_for`).
        """
        count, heads, parts = len(rows), out.shape[1], cut[0]
        blocks = 0
        for i in range(count):
            blocks += _blocks(seq_lens[i], window)
        # A part has at most two pieces of rows that it shares: its first and its last.
        owner = np.empty(2 * parts, np.int64)
        for piece in range(2 * parts):
            owner[piece] = -1
        sums = np.empty((2 * parts, heads, dim), np.float32)
        best = np.empty((2 * parts, heads), np.float32)
        weight = np.empty((2 * parts, heads), np.float32)
        for part in prange(parts):
            _part(part, parts, blocks, qkv, pool, page_table, rows, seq_lens, out, first, page_size, window,
                  owner, sums, best, weight, dim)  # fmt: skip
        _merge(owner, sums, best, weight, out, first, dim)

    return decode_attention


@inner
def _blocks(seq_len: int, window: int) -> int:
    seen = min(seq_len, window) if window > 0 else seq_len
    return (seen + BLOCK - 1) // BLOCK


@inner
def _oldest(seq_len: int, window: int) -> int:
    return max(seq_len - window, 0) if window > 0 else 0


@inner
def _part(  # type: ignore[no-untyped-def]
    part, parts, blocks, qkv, pool, page_table, rows, seq_lens, out, first, page_size, window,
    owner, sums, best, weight, dim,
):  # fmt: skip
    """Blocks part/parts..(part+1)/parts of all: whole rows go to `out`, pieces of rows to the arrays of pieces."""
    heads = out.shape[1]
    begin, end = blocks * part // parts, blocks * (part + 1) // parts
    total = np.empty((heads, dim), np.float32)
    top, mass = np.empty(heads, np.float32), np.empty(heads, np.float32)
    query = np.empty((heads, dim), np.float32)
    scores = np.empty((heads, BLOCK), np.float32)
    slots, ahead = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    scale = np.float32(1.0 / np.sqrt(dim))
    at, piece = 0, 2 * part
    for i in range(len(rows)):
        own = _blocks(seq_lens[i], window)
        start, stop = max(begin - at, 0), min(end - at, own)
        at += own
        if start >= stop:
            continue
        for h in range(heads):
            for d in range(dim):
                query[h, d] = qkv[first + i, h * dim + d] * scale
        since = _oldest(seq_lens[i], window) + start * BLOCK
        until = min(since + (stop - start) * BLOCK, seq_lens[i])
        after = min(i + 1, len(rows) - 1)
        _attend(
            query, pool, page_table[rows[i]], since, until,
            page_table[rows[after]], _oldest(seq_lens[after], window), seq_lens[after],
            page_size, scores, slots, ahead, total, top, mass, dim,
        )  # fmt: skip
        if stop - start == own:
            for h in range(heads):
                share = _ONE / mass[h]
                for d in range(dim):
                    out[first + i, h, d] = total[h, d] * share
        else:
            owner[piece] = i
            for h in range(heads):
                best[piece, h], weight[piece, h] = top[h], mass[h]
                for d in range(dim):
                    sums[piece, h, d] = total[h, d]
            piece += 1


@inner
def _attend(  # type: ignore[no-untyped-def]
    query, pool, pages, since, until, after_pages, after_since, after_until,
    page_size, scores, slots, ahead, total, top, mass, dim,
):  # fmt: skip
    """Softmax-weighted sum of the values of tokens since..until: `total` and its `mass`, both over exp(`top`).

    During the last block the first one of the row after this, if there is one, is asked for.
    """
    for h in range(len(top)):
        top[h], mass[h] = _NEVER, _ZERO
        for d in range(dim):
            total[h, d] = _ZERO
    _locate(pages, since, until, page_size, slots)
    for token in range(since, until, BLOCK):
        if token + BLOCK < until:
            _locate(pages, token + BLOCK, until, page_size, ahead)
        else:
            _locate(after_pages, after_since, after_until, page_size, ahead)
        _score(query, pool, slots, ahead, scores, dim)
        _weigh(scores, until - token, total, top, mass, dim)
        _add(scores, pool, slots, ahead, total, dim)
        for t in range(BLOCK):
            slots[t] = ahead[t]


@inner
def _locate(pages, token, until, page_size, slots):  # type: ignore[no-untyped-def]
    """Slots of a block of tokens; beyond the end the last token's, whose scores are then made to count nothing."""
    page, offset = token // page_size, token % page_size
    for t in range(BLOCK):
        slots[t] = pages[page] * page_size + offset
        if token + t + 1 < until:
            offset += 1
            if offset == page_size:
                page, offset = page + 1, 0


@inner
def _ask(pool, ahead, t, head, dim):  # type: ignore[no-untyped-def]
    """Have a head's keys or values of four tokens of the next block brought closer while this one is computed."""
    stride = 2 * pool.shape[2] * dim
    for line in range(head * dim, (head + 1) * dim, _LINE):
        prefetch(pool, ahead[t] * stride + line)
        prefetch(pool, ahead[t + 1] * stride + line)
        prefetch(pool, ahead[t + 2] * stride + line)
        prefetch(pool, ahead[t + 3] * stride + line)


@inner
def _score(query, pool, slots, ahead, scores, dim):  # type: ignore[no-untyped-def]
    groups = pool.shape[2]
    each = query.shape[0] // groups
    for t in range(0, BLOCK, 4):
        for g in range(groups):
            _ask(pool, ahead, t, g, dim)
            k0, k1 = pool[slots[t], 0, g], pool[slots[t + 1], 0, g]
            k2, k3 = pool[slots[t + 2], 0, g], pool[slots[t + 3], 0, g]
            for h in range(g * each, (g + 1) * each):
                s0 = s1 = s2 = s3 = _ZERO
                for d in range(dim):
                    x = query[h, d]
                    s0 += x * k0[d]
                    s1 += x * k1[d]
                    s2 += x * k2[d]
                    s3 += x * k3[d]
                scores[h, t], scores[h, t + 1], scores[h, t + 2], scores[h, t + 3] = s0, s1, s2, s3


@inner
def _weigh(scores, left, total, top, mass, dim):  # type: ignore[no-untyped-def]
    """Scores to weights; what was summed before is brought to the new maximum."""
    for h in range(scores.shape[0]):
        for t in range(left, BLOCK):
            scores[h, t] = _NEVER
        highest = top[h]
        for t in range(BLOCK):
            highest = max(highest, scores[h, t])
        added = _ZERO
        for t in range(BLOCK):
            w = exp(scores[h, t] - highest)
            scores[h, t] = w
            added += w
        if highest > top[h]:
            shrink = exp(top[h] - highest)
            top[h] = highest
            mass[h] *= shrink
            for d in range(dim):
                total[h, d] *= shrink
        mass[h] += added


@inner
def _add(weights, pool, slots, ahead, total, dim):  # type: ignore[no-untyped-def]
    groups = pool.shape[2]
    each = total.shape[0] // groups
    for t in range(0, BLOCK, 4):
        for g in range(groups):
            _ask(pool, ahead, t, groups + g, dim)
            v0, v1 = pool[slots[t], 1, g], pool[slots[t + 1], 1, g]
            v2, v3 = pool[slots[t + 2], 1, g], pool[slots[t + 3], 1, g]
            for h in range(g * each, (g + 1) * each):
                w0, w1, w2, w3 = weights[h, t], weights[h, t + 1], weights[h, t + 2], weights[h, t + 3]
                for d in range(dim):
                    total[h, d] += w0 * v0[d] + w1 * v1[d] + w2 * v2[d] + w3 * v3[d]


@inner
def _merge(owner, sums, best, weight, out, first, dim):  # type: ignore[no-untyped-def]
    """Rows whose pieces different parts attended to; pieces of a row are neighbours in the list."""
    heads = out.shape[1]
    for piece in range(len(owner)):
        row = owner[piece]
        if row < 0:
            continue
        for h in range(heads):
            highest = _NEVER
            for other in range(piece, len(owner)):
                if owner[other] == row:
                    highest = max(highest, best[other, h])
            mass = _ZERO
            out[first + row, h] = _ZERO
            for other in range(piece, len(owner)):
                if owner[other] == row:
                    share = exp(best[other, h] - highest)
                    mass += share * weight[other, h]
                    for d in range(dim):
                        out[first + row, h, d] += share * sums[other, h, d]
            share = _ONE / mass
            for d in range(dim):
                out[first + row, h, d] *= share
        for other in range(piece, len(owner)):
            if owner[other] == row:
                owner[other] = -1

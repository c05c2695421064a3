"""What the attention kernels have in common: tiles of keys and values out of the paged pool, and the softmax over them.

Called by `split_attention`, `shared_attention` and `extend_attention`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from services.worker.kernels.eight_bits import widened

MASKED = tl.constexpr(-1.0e30)
"""Finite, so that a fully masked line cannot make NaN: its weight underflows to 0 in the next rescale or merge."""
LOG2_E = 1.4426950408889634
"""Softmax runs in base 2."""


@triton.jit
def slots_of(table: tl.tensor, token: tl.tensor, PAGE_SIZE: tl.constexpr) -> tl.tensor:
    """Slots (int64) in which the tokens at these positions of a row lie; `table` points to the row's page ids."""
    page = tl.load(table + token // PAGE_SIZE).to(tl.int64)
    return page * PAGE_SIZE + token % PAGE_SIZE


@triton.jit
def load_heads(at: tl.tensor, dim_inside: tl.tensor, WHOLE: tl.constexpr) -> tl.tensor:
    """A tile of heads. `dim_inside`, in the tile's shape, says which elements are a head's own.

    WHOLE: all are, so the load needs no mask, which would cost its width.
    """
    if WHOLE:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=dim_inside, other=0.0)
    return tile


@triton.jit
def attend_blocks(
    q_tile: tl.tensor,
    acc: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    k_base: tl.tensor,
    v_base: tl.tensor,
    table: tl.tensor,
    last_seen: tl.tensor,
    seq_len: tl.tensor,
    first: tl.tensor,
    stop: tl.tensor,
    scale_log2: tl.float32,
    pool_stride: tl.int64,
    MASK: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Online softmax of a tile of queries over KV tokens [first, stop), whole blocks.

    Args:
        acc, peak, total: running sums, in units of the raw scores.
        last_seen: [BLOCK_M] newest token that each line sees. Read, like `seq_len`, with MASK only.
    """
    column = tl.arange(0, BLOCK_N)
    dim_inside = tl.arange(0, BLOCK_D) < HEAD_DIM
    for block in range(first, stop, BLOCK_N):
        token = block + column
        stored = token
        if MASK:
            stored = tl.minimum(token, seq_len - 1)  # never a foreign or unwritten slot: 0 * NaN is NaN
        slot = slots_of(table, stored, PAGE_SIZE)
        k_tile = load_heads(k_base + slot[None, :] * pool_stride, dim_inside[:, None], BLOCK_D == HEAD_DIM)
        scores = tl.dot(q_tile, widened(k_tile, q_tile.dtype), input_precision=PRECISION)
        if MASK:
            seen = token[None, :] <= last_seen[:, None]
            if WINDOW > 0:
                seen = seen & (token[None, :] > last_seen[:, None] - WINDOW)
            scores = tl.where(seen, scores, MASKED)
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        weight = tl.exp2(scores * scale_log2 - (new_peak * scale_log2)[:, None])  # one fused multiply-add each
        fade = tl.exp2((peak - new_peak) * scale_log2)
        total = total * fade + tl.sum(weight, axis=1)
        acc = acc * fade[:, None]
        v_tile = load_heads(v_base + slot[:, None] * pool_stride, dim_inside[None, :], BLOCK_D == HEAD_DIM)
        acc = tl.dot(weight.to(q_tile.dtype), widened(v_tile, q_tile.dtype), acc, input_precision=PRECISION)
        peak = new_peak
    return acc, peak, total

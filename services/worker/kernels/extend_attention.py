"""Prefill and mixed attention: ragged queries at the end of their rows, context in the paged pool.

The rows' own new tokens are in the pool already, so prefix and new tokens are one sequence read through the page
table; whole cached prefixes, chunks of a prompt and forced runs are the same case. Blocks that every line of a tile
sees run without a mask, the diagonal ones with. Softmax runs in base 2. Called by the triton attention backend.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS
from services.worker.kernels.extend_plan import ExtendPlan
from services.worker.kernels.paged_tiles import LOG2_E, MASKED, attend_blocks


@triton.jit(do_not_specialize_on_alignment=INDEX_POINTERS)
def _extend_attention_kernel(
    q: tl.tensor,
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    page_table: tl.tensor,
    rows: tl.tensor,
    seq_lens: tl.tensor,
    cu_q: tl.tensor,
    tile_rows: tl.tensor,
    tile_firsts: tl.tensor,
    num_tiles: tl.tensor,
    out: tl.tensor,
    scale_log2: tl.float32,
    v_scale: tl.float32,
    q_stride: tl.int64,
    out_stride: tl.int64,
    pool_stride: tl.int64,
    table_stride: tl.int64,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tile = tl.load(num_tiles) - 1 - tl.program_id(0)  # tiles with the longest context first
    if tile < 0:
        return
    kv_head = tl.program_id(1)
    row = tl.load(tile_rows + tile)
    first_line = tl.load(tile_firsts + tile)
    q_begin = tl.load(cu_q + row)
    q_len = tl.load(cu_q + row + 1) - q_begin
    seq_len = tl.load(seq_lens + row)
    table = page_table + tl.load(rows + row).to(tl.int64) * table_stride

    line = first_line + tl.arange(0, BLOCK_M)
    query = line // GROUP
    head = kv_head * GROUP + line % GROUP
    dim = tl.arange(0, BLOCK_D)
    inside = (query < q_len)[:, None] & (dim < HEAD_DIM)[None, :]
    token_at = (q_begin + query).to(tl.int64)
    q_at = q + token_at[:, None] * q_stride + head[:, None] * HEAD_DIM + dim[None, :]
    q_tile = tl.load(q_at, mask=inside, other=0.0)

    prefix = seq_len - q_len
    last_seen = prefix + query  # position of each line's query
    first_position = prefix + first_line // GROUP
    stop = tl.minimum(prefix + (first_line + BLOCK_M - 1) // GROUP + 1, seq_len)
    k_base = k_pool + kv_head * HEAD_DIM + dim[:, None]
    v_base = v_pool + kv_head * HEAD_DIM + dim[None, :]
    peak = tl.full([BLOCK_M], MASKED, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first_position + 1 - WINDOW, 0)
    else:
        begin = (first_position + 1) // BLOCK_N * BLOCK_N
        acc, peak, total = attend_blocks(
            q_tile, acc, peak, total, k_base, v_base, table, last_seen, seq_len, 0, begin, scale_log2, pool_stride,
            False, WINDOW, HEAD_DIM, PAGE_SIZE, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
    acc, peak, total = attend_blocks(
        q_tile, acc, peak, total, k_base, v_base, table, last_seen, seq_len, begin, stop, scale_log2, pool_stride,
        True, WINDOW, HEAD_DIM, PAGE_SIZE, BLOCK_N, BLOCK_D, PRECISION,
    )  # fmt: skip
    acc = acc * (v_scale / total)[:, None]
    out_at = out + token_at[:, None] * out_stride + head[:, None] * HEAD_DIM + dim[None, :]
    tl.store(out_at, acc.to(out.dtype.element_ty), mask=inside)


def extend_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    page_table: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_q: torch.Tensor,
    plan: ExtendPlan,
    out: torch.Tensor,
    *,
    page_size: int,
    scale: float,
    window: int = 0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Causal attention of ragged queries over their rows' pages.

    Args:
        q: [T, H, D]; a strided view of the projection is fine, [H, D] contiguous.
        k_pool, v_pool: [num_slots, G, D], this step's tokens already written.
        page_table: [max_rows, max_pages] int32 page ids.
        rows: [R] int32 row of the page table of each batch row.
        seq_lens: [R] int32, this step's tokens included.
        cu_q: [R + 1] int32; query i of a row sits at position seq_len - q_len + i. A row may have no queries.
        plan: of `plan_extend` with the same `cu_q`.
        out: [T, H, D], written for every query below cu_q[R]; rows may be strided.
        page_size: tokens per page, a power of two.
        window: a query sees the `window` newest positions including its own; 0 = all.
        k_scale, v_scale: the pools hold k / k_scale and v / v_scale.
    """
    num_q_heads, head_dim = q.shape[1:]
    num_kv_heads = k_pool.shape[1]
    assert q.stride(1) == out.stride(1) == head_dim
    assert k_pool.stride() == v_pool.stride()
    assert page_size & (page_size - 1) == 0
    assert cu_q.shape[0] == rows.shape[0] + 1
    if rows.shape[0] == 0:
        return
    config = plan.config
    _extend_attention_kernel[(plan.max_tiles, num_kv_heads)](
        q, k_pool, v_pool, page_table, rows, seq_lens, cu_q, plan.tile_rows, plan.tile_firsts, plan.num_tiles, out,
        scale * k_scale * LOG2_E, v_scale, q.stride(0), out.stride(0), k_pool.stride(0), page_table.stride(0),
        GROUP=num_q_heads // num_kv_heads, HEAD_DIM=head_dim, PAGE_SIZE=page_size, WINDOW=window,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_D=triton.next_power_of_2(head_dim),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip

"""Decode attention: few queries a row against a long paged context, limited by the bytes of K and V.

Two launches a layer: workers of equal load over (worker, KV head), then the merge of the rows they cut. The queries
of a KV head's group, times a few tokens, are padded to a tile of 16 or more so that the products run on the tensor
cores. Softmax runs in base 2. Called by the triton attention backend, inside CUDA graphs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS
from services.worker.kernels.eight_bits import widened
from services.worker.kernels.overlap import let_the_next_begin, overlap, wait_for_the_one_before
from services.worker.kernels.paged_tiles import LOG2_E, MASKED, load_heads, slots_of
from services.worker.kernels.shared_attention import SharedWorkspace, Sharing
from services.worker.kernels.split_plan import SplitWorkspace

MANY_ROWS = 32
"""With so many rows a row is cut into few parts, and a program merges those of several heads; with fewer into many, and
a program merges those of one head."""


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=INDEX_POINTERS)
def _split_attention_kernel(
    q: tl.tensor,
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    page_table: tl.tensor,
    rows: tl.tensor,
    seq_lens: tl.tensor,
    cu_q: tl.tensor,
    cu_blocks: tl.tensor,
    share_in: tl.tensor,
    first_rows: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    partial_out: tl.tensor,
    partial_lse: tl.tensor,
    scale_log2: tl.float32,
    v_scale: tl.float32,
    q_stride: tl.int64,
    out_stride: tl.int64,
    pool_stride: tl.int64,
    table_stride: tl.int64,
    num_rows: tl.int32,
    NUM_Q_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    MAX_Q: tl.constexpr,
    RAGGED_Q: tl.constexpr,
    STARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    worker = tl.program_id(0)
    kv_head = tl.program_id(1)
    share = tl.load(share_in)
    begin = worker * share
    end = tl.minimum(begin + share, tl.load(cu_blocks + num_rows))
    row = tl.load(first_rows + worker)

    line = tl.arange(0, BLOCK_M)  # a line of the tile: query token x head of the group
    query = line // GROUP
    head = kv_head * GROUP + line % GROUP
    dim = tl.arange(0, BLOCK_D)
    dim_inside = dim < HEAD_DIM
    column = tl.arange(0, BLOCK_N)
    k_base = k_pool + kv_head * HEAD_DIM + dim[:, None]
    v_base = v_pool + kv_head * HEAD_DIM + dim[None, :]

    while begin < end:
        row_begin = tl.load(cu_blocks + row)
        row_end = tl.load(cu_blocks + row + 1)
        stop = tl.minimum(end, row_end)
        if begin < stop:
            seq_len = tl.load(seq_lens + row)
            q_begin = row
            q_len = 1
            if RAGGED_Q:
                q_begin = tl.load(cu_q + row)
                q_len = tl.load(cu_q + row + 1) - q_begin
            table = page_table + tl.load(rows + row).to(tl.int64) * table_stride
            line_inside = query < q_len
            q_at = q + (q_begin + query).to(tl.int64)[:, None] * q_stride + head[:, None] * HEAD_DIM + dim[None, :]
            q_tile = tl.load(q_at, mask=line_inside[:, None] & dim_inside[None, :], other=0.0)
            first_token = 0
            if WINDOW > 0:
                first_token = tl.maximum(seq_len - q_len + 1 - WINDOW, 0)
            if STARTS:
                first_token = tl.load(starts + row)
            last_seen = seq_len - q_len + query  # position of each line's query
            peak = tl.full([BLOCK_M], MASKED, tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            for block in range(begin - row_begin, stop - row_begin):
                token = first_token + block * BLOCK_N + column
                stored = tl.minimum(token, seq_len - 1)  # never a foreign or unwritten slot: 0 * NaN is NaN
                slot = slots_of(table, stored, PAGE_SIZE)
                k_tile = load_heads(k_base + slot[None, :] * pool_stride, dim_inside[:, None], BLOCK_D == HEAD_DIM)
                scores = tl.dot(q_tile, widened(k_tile, q_tile.dtype), input_precision=PRECISION) * scale_log2
                seen = token[None, :] <= last_seen[:, None]
                if WINDOW > 0:
                    seen = seen & (token[None, :] > last_seen[:, None] - WINDOW)
                scores = tl.where(seen, scores, MASKED)
                new_peak = tl.maximum(peak, tl.max(scores, axis=1))
                weight = tl.exp2(scores - new_peak[:, None])
                fade = tl.exp2(peak - new_peak)
                total = total * fade + tl.sum(weight, axis=1)
                peak = new_peak
                v_tile = load_heads(v_base + slot[:, None] * pool_stride, dim_inside[None, :], BLOCK_D == HEAD_DIM)
                acc = acc * fade[:, None]
                acc = tl.dot(weight.to(q_tile.dtype), widened(v_tile, q_tile.dtype), acc, input_precision=PRECISION)
            acc = acc * (v_scale / total)[:, None]
            whole = (begin == row_begin) & (stop == row_end)
            if STARTS:
                whole = whole & (first_token == 0)
            if whole:
                out_at = out + (q_begin + query).to(tl.int64)[:, None] * out_stride
                out_at += head[:, None] * HEAD_DIM + dim[None, :]
                tl.store(out_at, acc.to(out.dtype.element_ty), mask=line_inside[:, None] & dim_inside[None, :])
            else:
                place = (worker + row).to(tl.int64) * (MAX_Q * NUM_Q_HEADS) + query * NUM_Q_HEADS + head
                tl.store(partial_lse + place, peak + tl.log2(total), mask=line_inside)
                partial_at = partial_out + place[:, None] * HEAD_DIM + dim[None, :]
                tl.store(partial_at, acc, mask=line_inside[:, None] & dim_inside[None, :])
            begin = stop
        row += 1


@triton.jit
def _merge_workers(
    acc: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    partial_out: tl.tensor,
    partial_lse: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    place: tl.tensor,
    head_inside: tl.tensor,
    PLACES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTIALS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add what workers first..last left of one query, for a few heads.

    Args:
        acc, peak, total: [heads, D], [heads], [heads] so far.
        place: [heads] of worker 0's results; the next worker's are PLACES behind it.
    """
    dim = tl.arange(0, BLOCK_D)
    for start in range(first, last + 1, PARTIALS):
        worker = start + tl.arange(0, PARTIALS)
        real = (worker <= last)[:, None] & head_inside[None, :]
        at = worker.to(tl.int64)[:, None] * PLACES + place[None, :]
        lse = tl.load(partial_lse + at, mask=real, other=MASKED)
        held = real[:, :, None] & (dim < HEAD_DIM)[None, None, :]
        part = tl.load(partial_out + at[:, :, None] * HEAD_DIM + dim[None, None, :], mask=held, other=0.0)
        new_peak = tl.maximum(peak, tl.max(lse, axis=0))
        weight = tl.where(real, tl.exp2(lse - new_peak[None, :]), 0.0)
        fade = tl.exp2(peak - new_peak)
        acc = acc * fade[:, None] + tl.sum(part * weight[:, :, None], axis=0)
        total = total * fade + tl.sum(weight, axis=0)
        peak = new_peak
    return acc, peak, total


@triton.jit(do_not_specialize_on_alignment=INDEX_POINTERS)
def _merge_kernel(
    cu_q: tl.tensor,
    cu_blocks: tl.tensor,
    share_in: tl.tensor,
    out: tl.tensor,
    partial_out: tl.tensor,
    partial_lse: tl.tensor,
    chunk_of: tl.tensor,
    place_of: tl.tensor,
    chunk_blocks: tl.tensor,
    chunk_share: tl.tensor,
    shared_out: tl.tensor,
    shared_lse: tl.tensor,
    out_stride: tl.int64,
    NUM_Q_HEADS: tl.constexpr,
    MAX_Q: tl.constexpr,
    RAGGED_Q: tl.constexpr,
    MEMBERS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTIALS: tl.constexpr,
    HEADS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    row = tl.program_id(0)
    query = tl.program_id(1)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    head_inside = head < NUM_Q_HEADS
    row_begin = tl.load(cu_blocks + row)
    row_end = tl.load(cu_blocks + row + 1)
    share = tl.load(share_in)
    q_begin = row
    q_len = 1
    if RAGGED_Q:
        q_begin = tl.load(cu_q + row)
        q_len = tl.load(cu_q + row + 1) - q_begin
    dim = tl.arange(0, BLOCK_D)
    held = head_inside[:, None] & (dim < HEAD_DIM)[None, :]
    out_at = out + (q_begin + query).to(tl.int64) * out_stride + head[:, None] * HEAD_DIM + dim[None, :]
    first = row_begin // share
    last = (row_end - 1) // share
    chunk = -1
    if MEMBERS > 0:
        chunk = tl.load(chunk_of + row)
    if query < q_len:
        if row_begin == row_end:
            tl.store(out_at, tl.zeros([HEADS, BLOCK_D], out.dtype.element_ty), mask=held)
        elif (first < last) | (chunk >= 0):
            peak = tl.full([HEADS], MASKED, tl.float32)
            total = tl.zeros([HEADS], tl.float32)
            acc = tl.zeros([HEADS, BLOCK_D], tl.float32)
            place = row.to(tl.int64) * (MAX_Q * NUM_Q_HEADS) + query * NUM_Q_HEADS + head
            acc, peak, total = _merge_workers(
                acc, peak, total, partial_out, partial_lse, first, last, place, head_inside, MAX_Q * NUM_Q_HEADS,
                HEAD_DIM, BLOCK_D, PARTIALS,
            )  # fmt: skip
            if MEMBERS > 0:
                per_worker = tl.load(chunk_share)
                at = tl.maximum(chunk, 0)
                first = tl.load(chunk_blocks + at) // per_worker
                last = tl.where(chunk >= 0, (tl.load(chunk_blocks + at + 1) - 1) // per_worker, -1)
                place = tl.load(place_of + row).to(tl.int64) * NUM_Q_HEADS + head
                acc, peak, total = _merge_workers(
                    acc, peak, total, shared_out, shared_lse, first, last, place, head_inside, MEMBERS * NUM_Q_HEADS,
                    HEAD_DIM, BLOCK_D, PARTIALS,
                )  # fmt: skip
            tl.store(out_at, (acc / total[:, None]).to(out.dtype.element_ty), mask=held)


def split_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    page_table: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    workspace: SplitWorkspace,
    out: torch.Tensor,
    *,
    page_size: int,
    scale: float,
    cu_q: torch.Tensor | None = None,
    shared: tuple[Sharing, SharedWorkspace] | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Attention of each row's newest tokens over its pages, after `plan_split` with the same lengths.

    Args:
        q: [T, H, D], T = R without `cu_q`; a strided view of the projection is fine, [H, D] contiguous.
        k_pool, v_pool: [num_slots, G, D], this step's tokens already written.
        page_table: [max_rows, max_pages] int32 page ids.
        rows: [R] int32 row of the page table of each batch row.
        seq_lens: [R] int32; 0 = padding.
        out: [T, H, D], written for every query; may have padded rows.
        page_size: tokens per page, a power of two.
        scale: of the scores, usually D ** -0.5.
        cu_q: [R + 1] int32; query i of a row sits at position seq_len - q_len + i and sees what is before it.
        shared: what `shared_attention` has left for these rows; the plan was made with its `starts`.
        k_scale, v_scale: the pools hold k / k_scale and v / v_scale.
    """
    num_rows = seq_lens.shape[0]
    num_q_heads, head_dim = q.shape[1:]
    num_kv_heads = k_pool.shape[1]
    group = num_q_heads // num_kv_heads
    assert q.stride(1) == out.stride(1) == head_dim
    assert k_pool.stride() == v_pool.stride()
    assert page_size & (page_size - 1) == 0
    assert num_rows <= workspace.max_rows
    if num_rows == 0:
        return
    config, max_q, ragged = workspace.config, workspace.max_q_len, cu_q is not None
    block_d = triton.next_power_of_2(head_dim)
    cu_q = rows if cu_q is None else cu_q
    starts = chunk_of = place_of = rows
    members, chunks = 0, workspace
    if shared is not None:
        assert max_q == 1
        starts, chunk_of, place_of = shared[0].starts, shared[0].chunk_of, shared[0].place_of
        members, chunks = shared[1].max_members, shared[1].split
    _split_attention_kernel[(workspace.num_workers, num_kv_heads)](
        q, k_pool, v_pool, page_table, rows, seq_lens, cu_q, workspace.cu_blocks, workspace.share,
        workspace.first_rows, starts, out, workspace.partial_out, workspace.partial_lse,
        scale * k_scale * LOG2_E, v_scale, q.stride(0), out.stride(0), k_pool.stride(0), page_table.stride(0), num_rows,
        NUM_Q_HEADS=num_q_heads, GROUP=group, MAX_Q=max_q, RAGGED_Q=ragged, STARTS=shared is not None,
        HEAD_DIM=head_dim, PAGE_SIZE=page_size, WINDOW=workspace.window,
        BLOCK_M=max(16, triton.next_power_of_2(group * max_q)), BLOCK_N=config.block_n,
        BLOCK_D=block_d, PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps, num_stages=config.num_stages, **overlap(q.device),
    )  # fmt: skip
    many = num_rows >= MANY_ROWS and max_q == 1
    heads = min(8, triton.next_power_of_2(num_q_heads)) if many else 1
    _merge_kernel[(num_rows, max_q, triton.cdiv(num_q_heads, heads))](
        cu_q, workspace.cu_blocks, workspace.share, out, workspace.partial_out, workspace.partial_lse,
        chunk_of, place_of, chunks.cu_blocks, chunks.share, chunks.partial_out, chunks.partial_lse, out.stride(0),
        NUM_Q_HEADS=num_q_heads, MAX_Q=max_q, RAGGED_Q=ragged, MEMBERS=members, HEAD_DIM=head_dim, BLOCK_D=block_d,
        PARTIALS=2 if many else 32, HEADS=heads, num_warps=4, **overlap(q.device),
    )  # fmt: skip

"""Decode attention over a prefix that several rows share: its keys and values are read once for all of them.

The queries of up to `max_members` rows that begin with the same pages fill one tile, which goes over the shared
tokens; what each row has of its own is `split_attention`'s part, and `merge_partials` puts both together. The work is
laid out like that of `split_attention`: blocks of all chunks end to end, equal shares per worker. Called by the triton
attention backend, inside CUDA graphs: only the batch decides who shares what, not the step.

Source of the idea: Hydragen (Juravsky et al. 2024), cascade inference (FlashInfer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS, sm_count
from services.worker.kernels.overlap import overlap, wait_for_the_one_before
from services.worker.kernels.paged_tiles import LOG2_E, MASKED, attend_blocks
from services.worker.kernels.split_plan import SplitConfig, SplitWorkspace, split_workspace

LINES = 64
"""Lines of a tile: rows times the query heads of a KV head's group."""
SHARED_BLOCK = 64
"""Shared lengths are multiples of it, so that no block needs a mask."""


class Sharing(NamedTuple):
    """Who shares what, on the device. A chunk is a set of rows that attend a prefix together.

    R batch rows, C chunks, some unused at the end.
    """

    starts: torch.Tensor
    """[R] int32 tokens that a row's chunk attends for it; 0 = it is in none."""
    chunk_of: torch.Tensor
    """[R] int32; -1 = in none."""
    place_of: torch.Tensor
    """[R] int32 place of the row in `members`."""
    members: torch.Tensor
    """[R] int32 batch rows, chunk after chunk."""
    cu_members: torch.Tensor
    """[C + 1] int32 bounds of the chunks in `members`."""
    rows: torch.Tensor
    """[C] int32 row of the page table that begins with the prefix."""
    lens: torch.Tensor
    """[C] int32 shared tokens, a multiple of `SHARED_BLOCK`; 0 = unused."""


@dataclass(frozen=True, slots=True)
class SharedWorkspace:
    """Lives as long as the engine; one stream uses it at a time."""

    split: SplitWorkspace
    """Plan over chunks; partial results at `worker * max_members + place in members`."""
    max_members: int


def max_members(num_q_heads: int, num_kv_heads: int) -> int:
    """Rows of a chunk; below 2 there is nothing to share."""
    return LINES * num_kv_heads // num_q_heads


def shared_workspace(
    max_rows: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv_dtype: torch.dtype,
    device: torch.device,
    *,
    config: SplitConfig | None = None,
    num_workers: int | None = None,
) -> SharedWorkspace:
    """Allocate for batches of up to `max_rows` rows; not inside a graph capture."""
    members = max_members(num_q_heads, num_kv_heads)
    wide = triton.next_power_of_2(head_dim) * kv_dtype.itemsize > 256
    default = SplitConfig(32, 8, 2, ctas_per_sm=1) if wide else SplitConfig(64, 4, 3, ctas_per_sm=2)
    config = config or default
    assert SHARED_BLOCK % config.block_n == 0
    workers = num_workers or max(1, sm_count(device) * config.ctas_per_sm // num_kv_heads)
    split = split_workspace(
        max_rows, num_q_heads, num_kv_heads, head_dim, kv_dtype, device,
        config=config, num_workers=workers, num_partials=workers * members + max_rows,
    )  # fmt: skip
    return SharedWorkspace(split, members)


@triton.jit(do_not_specialize=["num_chunks"], do_not_specialize_on_alignment=INDEX_POINTERS)
def _shared_attention_kernel(
    q: tl.tensor,
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    page_table: tl.tensor,
    rows: tl.tensor,
    members: tl.tensor,
    cu_members: tl.tensor,
    cu_blocks: tl.tensor,
    share_in: tl.tensor,
    first_rows: tl.tensor,
    partial_out: tl.tensor,
    partial_lse: tl.tensor,
    scale_log2: tl.float32,
    v_scale: tl.float32,
    q_stride: tl.int64,
    pool_stride: tl.int64,
    table_stride: tl.int64,
    num_chunks: tl.int32,
    NUM_Q_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    MEMBERS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
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
    end = tl.minimum(begin + share, tl.load(cu_blocks + num_chunks))
    chunk = tl.load(first_rows + worker)

    line = tl.arange(0, BLOCK_M)  # a line of the tile: member x head of the group
    member = line // GROUP
    head = kv_head * GROUP + line % GROUP
    dim = tl.arange(0, BLOCK_D)
    k_base = k_pool + kv_head * HEAD_DIM + dim[:, None]
    v_base = v_pool + kv_head * HEAD_DIM + dim[None, :]

    while begin < end:
        chunk_begin = tl.load(cu_blocks + chunk)
        stop = tl.minimum(end, tl.load(cu_blocks + chunk + 1))
        if begin < stop:
            first_member = tl.load(cu_members + chunk)
            inside = member < tl.load(cu_members + chunk + 1) - first_member
            batch_row = tl.load(members + first_member + member, mask=inside, other=0).to(tl.int64)
            held = inside[:, None] & (dim < HEAD_DIM)[None, :]
            q_at = q + batch_row[:, None] * q_stride + head[:, None] * HEAD_DIM + dim[None, :]
            q_tile = tl.load(q_at, mask=held, other=0.0)
            table = page_table + tl.load(rows + chunk).to(tl.int64) * table_stride
            peak = tl.full([BLOCK_M], MASKED, tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            acc, peak, total = attend_blocks(
                q_tile, acc, peak, total, k_base, v_base, table, member, 0,
                (begin - chunk_begin) * BLOCK_N, (stop - chunk_begin) * BLOCK_N, scale_log2, pool_stride,
                False, 0, HEAD_DIM, PAGE_SIZE, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
            place = (worker * MEMBERS + first_member + member).to(tl.int64) * NUM_Q_HEADS + head
            tl.store(partial_lse + place, peak * scale_log2 + tl.log2(total), mask=inside)
            acc = acc * (v_scale / total)[:, None]
            tl.store(partial_out + place[:, None] * HEAD_DIM + dim[None, :], acc, mask=held)
            begin = stop
        chunk += 1


def shared_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    page_table: torch.Tensor,
    sharing: Sharing,
    workspace: SharedWorkspace,
    *,
    page_size: int,
    scale: float,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Attention of the members of every chunk over their shared tokens, after `plan_split` with `sharing.lens`.

    Leaves partial results in the workspace for `merge_partials`.

    Args:
        q: [R, H, D], one query a batch row; a strided view of the projection is fine, [H, D] contiguous.
        k_pool, v_pool: [num_slots, G, D].
        page_table: [max_rows, max_pages] int32 page ids.
        page_size: tokens per page, a power of two.
        scale: of the scores, usually D ** -0.5.
        k_scale, v_scale: the pools hold k / k_scale and v / v_scale.
    """
    split, (num_q_heads, head_dim), num_kv_heads = workspace.split, q.shape[1:], k_pool.shape[1]
    group = num_q_heads // num_kv_heads
    assert q.stride(1) == head_dim
    assert k_pool.stride() == v_pool.stride()
    num_chunks = sharing.rows.shape[0]
    assert num_chunks <= split.max_rows
    _shared_attention_kernel[(split.num_workers, num_kv_heads)](
        q, k_pool, v_pool, page_table, sharing.rows, sharing.members, sharing.cu_members, split.cu_blocks, split.share,
        split.first_rows, split.partial_out, split.partial_lse,
        scale * k_scale * LOG2_E, v_scale, q.stride(0), k_pool.stride(0), page_table.stride(0), num_chunks,
        NUM_Q_HEADS=num_q_heads, GROUP=group, MEMBERS=workspace.max_members, HEAD_DIM=head_dim, PAGE_SIZE=page_size,
        BLOCK_M=max(16, triton.next_power_of_2(group * workspace.max_members)), BLOCK_N=split.config.block_n,
        BLOCK_D=triton.next_power_of_2(head_dim), PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=split.config.num_warps, num_stages=split.config.num_stages, **overlap(q.device),
    )  # fmt: skip

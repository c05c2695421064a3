"""How decode attention is spread over the card: every worker gets the same number of KV blocks.

The KV blocks of all rows are laid end to end; worker `w` takes blocks [w * share, (w + 1) * share) of that line,
whatever rows they belong to. So one long row uses the whole card, 256 uneven rows leave no tail, and the grid depends
on the device alone: the lengths are read on the device, which is what a CUDA graph needs. Where a worker's range cuts
a row, it leaves a partial result at index `worker + row` (unique, since both only grow along the line), merged
afterwards.

The plan is made once per step and serves every layer. Used by `split_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS, sm_count

WORKERS_PER_PROGRAM = 16


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Shape of one worker's inner loop."""

    block_n: int
    """KV tokens per iteration."""
    num_warps: int
    num_stages: int
    """Depth of the software pipeline. Page ids and tiles each take a stage: 3 and 4 keep one tile ahead, 5 two."""
    ctas_per_sm: int
    """Workers resident on a multiprocessor; their shared memory and registers must fit."""


def split_config(head_dim: int, kv_bytes: int) -> SplitConfig:
    """The choice for a Hopper card, by what fits its registers and shared memory; the benchmark times others.

    Args:
        head_dim: D.
        kv_bytes: bytes of one element of the pools.
    """
    row_bytes = triton.next_power_of_2(head_dim) * kv_bytes
    if row_bytes <= 256:
        return SplitConfig(block_n=64, num_warps=4, num_stages=3, ctas_per_sm=3)
    if row_bytes <= 512:
        return SplitConfig(block_n=32, num_warps=4, num_stages=3, ctas_per_sm=3)
    return SplitConfig(block_n=16, num_warps=4, num_stages=3, ctas_per_sm=2)


@dataclass(frozen=True, slots=True)
class SplitWorkspace:
    """Buffers of the plan and of partial results. Lives as long as the engine; one stream uses it at a time."""

    config: SplitConfig
    num_workers: int
    max_rows: int
    max_q_len: int
    """Most query tokens of a row: 1 = decode; a few for forced runs of a grammar or a draft to verify."""
    window: int
    """Sliding window the plan assumes; 0 = none. Models that mix both need a workspace of each."""
    cu_blocks: torch.Tensor
    """[max_rows + 1] int32: first KV block of each row on the line."""
    share: torch.Tensor
    """[1] int32: blocks per worker."""
    first_rows: torch.Tensor
    """[num_workers] int32: row in which each worker's range begins."""
    partial_out: torch.Tensor
    """[places, max_q_len * H, D] float32, normalised by its own softmax sum."""
    partial_lse: torch.Tensor
    """[places, max_q_len * H] float32: log2 of the softmax sum."""


def split_workspace(
    max_rows: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv_dtype: torch.dtype,
    device: torch.device,
    *,
    max_q_len: int = 1,
    window: int = 0,
    config: SplitConfig | None = None,
    num_workers: int | None = None,
    num_partials: int | None = None,
) -> SplitWorkspace:
    """Allocate for batches of up to `max_rows` rows; not inside a graph capture.

    Args:
        num_partials: places for partial results, where they are not at `worker + row`.
    """
    config = config or split_config(head_dim, kv_dtype.itemsize)
    workers = num_workers or max(1, sm_count(device) * config.ctas_per_sm // num_kv_heads)
    slots = num_partials or workers + max_rows
    return SplitWorkspace(
        config=config,
        num_workers=workers,
        max_rows=max_rows,
        max_q_len=max_q_len,
        window=window,
        cu_blocks=torch.zeros(max_rows + 1, dtype=torch.int32, device=device),
        share=torch.ones(1, dtype=torch.int32, device=device),
        first_rows=torch.zeros(workers, dtype=torch.int32, device=device),
        partial_out=torch.empty((slots, max_q_len * num_q_heads, head_dim), dtype=torch.float32, device=device),
        partial_lse=torch.empty((slots, max_q_len * num_q_heads), dtype=torch.float32, device=device),
    )


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=INDEX_POINTERS)
def _plan_split_kernel(
    seq_lens: tl.tensor,
    cu_q: tl.tensor,
    starts: tl.tensor,
    cu_blocks: tl.tensor,
    share_out: tl.tensor,
    first_rows: tl.tensor,
    num_rows: tl.int32,
    NUM_WORKERS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    RAGGED_Q: tl.constexpr,
    STARTS: tl.constexpr,
    ROWS: tl.constexpr,
    WORKERS: tl.constexpr,
) -> None:
    row = tl.arange(0, ROWS)
    real = row < num_rows
    span = tl.load(seq_lens + row, mask=real, other=0)
    q_len = (span > 0).to(tl.int32)
    if RAGGED_Q:
        q_len = tl.load(cu_q + row + 1, mask=real, other=0) - tl.load(cu_q + row, mask=real, other=0)
        span = tl.where(q_len > 0, span, 0)
    if WINDOW > 0:
        span = tl.minimum(span, WINDOW + q_len - 1)
    if STARTS:
        span -= tl.load(starts + row, mask=real, other=0)
    blocks = (span + BLOCK_N - 1) // BLOCK_N
    ends = tl.cumsum(blocks, axis=0)
    share = tl.maximum((tl.sum(blocks, axis=0) + NUM_WORKERS - 1) // NUM_WORKERS, 1)
    if tl.program_id(0) == 0:
        tl.store(cu_blocks, 0)
        tl.store(cu_blocks + 1 + row, ends, mask=real)
        tl.store(share_out, share)
    worker = tl.program_id(0) * WORKERS + tl.arange(0, WORKERS)
    passed = (ends[None, :] <= worker[:, None] * share) & real[None, :]
    tl.store(first_rows + worker, tl.sum(passed.to(tl.int32), axis=1), mask=worker < NUM_WORKERS)


def plan_split(
    workspace: SplitWorkspace,
    seq_lens: torch.Tensor,
    cu_q: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
) -> None:
    """Share out the KV blocks of this step's rows, on the device.

    Args:
        seq_lens: [R] int32, tokens in the KV pool including this step's; 0 = padding, its output becomes zeros.
        cu_q: [R + 1] int32 bounds of each row's queries; None = one each.
        starts: [R] int32 first token that is the row's to attend, below its length; 0 for padding. None = 0.
    """
    num_rows = seq_lens.shape[0]
    assert num_rows <= workspace.max_rows
    assert workspace.max_q_len == 1 or cu_q is not None
    assert starts is None or workspace.window == 0
    _plan_split_kernel[(triton.cdiv(workspace.num_workers, WORKERS_PER_PROGRAM),)](
        seq_lens, seq_lens if cu_q is None else cu_q, seq_lens if starts is None else starts, workspace.cu_blocks,
        workspace.share, workspace.first_rows, num_rows,
        NUM_WORKERS=workspace.num_workers, BLOCK_N=workspace.config.block_n, WINDOW=workspace.window,
        RAGGED_Q=cu_q is not None, STARTS=starts is not None,
        ROWS=triton.next_power_of_2(workspace.max_rows), WORKERS=WORKERS_PER_PROGRAM,
        num_warps=4,
    )  # fmt: skip

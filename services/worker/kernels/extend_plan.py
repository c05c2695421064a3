"""Which query tile of which row each program of extend attention takes.

A tile is BLOCK_M lines of (query token x head of one KV head's group): packing the group into the tile makes one load
of K and V serve all its heads and keeps short rows from wasting the tile. Rows are ragged, so the map from program to
(row, tile) is made on the device, once per step for all layers. Used by `extend_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS

TILES_PER_PROGRAM = 64
LEAST_ROWS = 256
"""One compilation serves all smaller numbers of rows."""


@dataclass(frozen=True, slots=True)
class ExtendConfig:
    """Tile shape of extend attention."""

    block_m: int
    """Lines (tokens x group) of a query tile."""
    block_n: int
    """KV tokens per iteration."""
    num_warps: int
    num_stages: int


def extend_config(head_dim: int, kv_bytes: int, lines_per_row: int) -> ExtendConfig:
    """The choice for a Hopper card, by what fits its registers and shared memory; the benchmark times others.

    Args:
        head_dim: D.
        kv_bytes: bytes of one element of the pools.
        lines_per_row: mean query tokens of a row times the heads of a group.
    """
    width = triton.next_power_of_2(head_dim)
    if kv_bytes > 2:
        return ExtendConfig(block_m=16, block_n=32 if width <= 128 else 16, num_warps=4, num_stages=2)
    if lines_per_row <= 64:
        return ExtendConfig(block_m=64 if lines_per_row > 32 else 32, block_n=64, num_warps=4, num_stages=3)
    if width <= 64:
        return ExtendConfig(block_m=128, block_n=128, num_warps=8, num_stages=3)
    if width <= 128:
        return ExtendConfig(block_m=128, block_n=64, num_warps=8, num_stages=3)
    return ExtendConfig(block_m=128, block_n=32, num_warps=8, num_stages=2)


@dataclass(frozen=True, slots=True)
class ExtendPlan:
    """Tile map of one step. The last tiles of a row see the most context, so programs take tiles from the end."""

    config: ExtendConfig
    max_tiles: int
    tile_rows: torch.Tensor
    """[max_tiles] int32: batch row of each tile."""
    tile_firsts: torch.Tensor
    """[max_tiles] int32: first line of the tile within its row."""
    num_tiles: torch.Tensor
    """[1] int32: tiles in use."""


@triton.jit(do_not_specialize=["num_rows", "max_tiles"], do_not_specialize_on_alignment=INDEX_POINTERS)
def _plan_extend_kernel(
    cu_q: tl.tensor,
    tile_rows: tl.tensor,
    tile_firsts: tl.tensor,
    num_tiles: tl.tensor,
    num_rows: tl.int32,
    max_tiles: tl.int32,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    row = tl.arange(0, ROWS)
    real = row < num_rows
    lines = (tl.load(cu_q + row + 1, mask=real, other=0) - tl.load(cu_q + row, mask=real, other=0)) * GROUP
    tiles = (lines + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(tiles, axis=0)
    if tl.program_id(0) == 0:
        tl.store(num_tiles, tl.sum(tiles, axis=0))
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    passed = (ends[None, :] <= tile[:, None]) & real[None, :]
    tile_row = tl.sum(passed.to(tl.int32), axis=1)
    before = tl.sum(tl.where(passed, tiles[None, :], 0), axis=1)
    tl.store(tile_rows + tile, tile_row, mask=tile < max_tiles)
    tl.store(tile_firsts + tile, (tile - before) * BLOCK_M, mask=tile < max_tiles)


def plan_extend(cu_q: torch.Tensor, num_tokens: int, group: int, config: ExtendConfig) -> ExtendPlan:
    """Map tiles to rows on the device.

    Args:
        cu_q: [R + 1] int32 bounds of each row's queries.
        num_tokens: an upper bound of the query tokens (the tokens of this forward, or the bucket of a graph).
        group: query heads per KV head.
    """
    num_rows = cu_q.shape[0] - 1
    max_tiles = max(1, triton.cdiv(num_tokens * group, config.block_m) + num_rows)
    buffer = torch.empty(2 * max_tiles + 1, dtype=torch.int32, device=cu_q.device)
    plan = ExtendPlan(config, max_tiles, buffer[:max_tiles], buffer[max_tiles:-1], buffer[-1:])
    rows_block = triton.next_power_of_2(max(num_rows, LEAST_ROWS))
    _plan_extend_kernel[(triton.cdiv(max_tiles, TILES_PER_PROGRAM),)](
        cu_q, plan.tile_rows, plan.tile_firsts, plan.num_tiles, num_rows, max_tiles,
        GROUP=group, BLOCK_M=config.block_m, ROWS=rows_block, TILES=TILES_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    return plan

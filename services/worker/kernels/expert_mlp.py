"""Mixture of experts, second half: the gated MLP of each chosen expert, as two grouped products and a weighted sum.

The first product keeps gate and up in one program and writes silu(gate) * up; the second writes one row per pair; the
sum adds a token's rows by their weights in fp32. Called by the MoE layer after `expert_routing`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from services.worker.kernels.expert_routing import ExpertBlocks, assign_blocks

BLOCK_GROUP = 8


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """Tile shape of a grouped product."""

    block_m: int
    block_n: int
    """Of the gated product: columns of gate and of up each."""
    block_k: int
    num_warps: int
    num_stages: int


def expert_config(pairs_per_expert: float, *, gated: bool) -> ExpertConfig:
    """The choice for a Hopper card; `block_m` is the same for both products.

    Args:
        pairs_per_expert: mean pairs of an expert; few: the bytes of the weights limit, many: the tensor cores.
    """
    if pairs_per_expert <= 16:
        return ExpertConfig(16, 64 if gated else 128, 128, 4, 4)
    if pairs_per_expert <= 48:
        return ExpertConfig(32, 64 if gated else 128, 128, 4, 3)
    if pairs_per_expert <= 160:
        return ExpertConfig(64, 64 if gated else 128, 64, 4, 4)
    return ExpertConfig(128, 64 if gated else 128, 64, 8, 4)


@triton.jit(do_not_specialize=["num_pairs"])
def _expert_product_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    pairs: tl.tensor,
    block_experts: tl.tensor,
    num_blocks: tl.tensor,
    x_stride: tl.int64,
    expert_stride: tl.int64,
    out_stride: tl.int64,
    num_pairs: tl.int32,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    PAIRS_PER_ROW: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # Blocks go through all columns in groups of GROUP, so that a wave of programs shares rows and weights in the cache.
    columns = (WIDTH + BLOCK_N - 1) // BLOCK_N
    total = tl.load(num_blocks)
    first = tl.program_id(0) // (GROUP * columns) * GROUP
    if first >= total:
        return
    size = tl.minimum(total - first, GROUP)
    place = tl.program_id(0) % (GROUP * columns)
    if place >= size * columns:
        return
    block = first + place % size
    expert = tl.load(block_experts + block).to(tl.int64)
    pair = tl.load(pairs + block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = pair < num_pairs
    column = place // size * BLOCK_N + tl.arange(0, BLOCK_N)
    read_column = column % WIDTH  # a load without a mask; the store has one
    depth = tl.arange(0, BLOCK_K)
    x_at = x + (pair // PAIRS_PER_ROW)[:, None] * x_stride + depth[None, :]
    weight_at = weight + expert * expert_stride + read_column.to(tl.int64)[None, :] * DEPTH + depth[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc_up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        if DEPTH % BLOCK_K == 0:
            x_tile = tl.load(x_at + start, mask=real[:, None], other=0.0)
            weight_tile = tl.load(weight_at + start)
        else:
            left = depth < DEPTH - start
            x_tile = tl.load(x_at + start, mask=real[:, None] & left[None, :], other=0.0)
            weight_tile = tl.load(weight_at + start, mask=left[:, None], other=0.0)
        acc = tl.dot(x_tile, weight_tile, acc, input_precision=PRECISION)
        if GATED:
            if DEPTH % BLOCK_K == 0:
                up_tile = tl.load(weight_at + WIDTH * DEPTH + start)
            else:
                up_tile = tl.load(weight_at + WIDTH * DEPTH + start, mask=(depth < DEPTH - start)[:, None], other=0.0)
            acc_up = tl.dot(x_tile, up_tile, acc_up, input_precision=PRECISION)
    if GATED:
        acc = acc / (1.0 + tl.exp(-acc)) * acc_up
    out_at = out + pair[:, None] * out_stride + column[None, :]
    tl.store(out_at, acc.to(out.dtype.element_ty), mask=real[:, None] & (column < WIDTH)[None, :])


@triton.jit
def _weighted_sum_kernel(
    products: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    out_stride: tl.int64,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    acc = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(TOP_K):
        weight = tl.load(weights + token * TOP_K + i)
        for split in tl.static_range(SPLITS):
            pair = (split * tl.num_programs(0) + token) * TOP_K + i
            row = tl.load(products + pair * WIDTH + column, mask=inside, other=0.0)
            acc += weight * row.to(tl.float32)
    tl.store(out + token * out_stride + column, acc.to(out.dtype.element_ty), mask=inside)


def expert_mlp(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    out: torch.Tensor | None = None,
    configs: tuple[ExpertConfig, ExpertConfig] | None = None,
) -> torch.Tensor:
    """Weighted sum over a token's experts of `down(silu(gate(x)) * up(x))`.

    Args:
        x: [T, N], last dimension contiguous.
        gate_up: [E, 2 * I, N] contiguous, gate rows first (a rank's share of I under tensor parallelism: the outputs of
            all ranks then add up).
        down: [E, N, I] contiguous.
        weights, experts: [T, top_k] float32 and int32 of `route`.
        out: [T, N] where to write; a new tensor when None; may be `x`.
        configs: of the gated and of the second product, same block_m; chosen by shape when None.
    """
    assert gate_up.stride()[1:] == (x.shape[1], 1)
    assert down.stride()[1:] == (down.shape[2], 1)
    assert x.stride(1) == 1
    tokens, hidden = x.shape
    num_experts, intermediate = down.shape[0], down.shape[2]
    top_k, pairs = experts.shape[1], experts.numel()
    out = torch.empty_like(x) if out is None else out
    if tokens == 0:
        return out
    load = pairs / num_experts
    first, second = configs or (expert_config(load, gated=True), expert_config(load, gated=False))
    blocks = assign_blocks(experts, num_experts, first.block_m)
    inner = torch.empty((pairs, intermediate), dtype=x.dtype, device=x.device)
    rows = torch.empty((pairs, hidden), dtype=x.dtype, device=x.device)
    _product(x, gate_up, inner, blocks, first, pairs, pairs_per_row=top_k, gated=True)
    _product(inner, down, rows, blocks, second, pairs, pairs_per_row=1, gated=False)
    weighted_sum(rows.unsqueeze(0), weights, out)
    return out


def weighted_sum(products: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
    """Add up each token's products by their weights, in fp32.

    Args:
        products: [S, T * top_k, N] contiguous; S parts of each product add up too.
        weights: [T, top_k] float32.
        out: [T, N], last dimension contiguous.
    """
    tokens, hidden = out.shape
    block = min(1024, triton.next_power_of_2(hidden))
    _weighted_sum_kernel[(tokens, triton.cdiv(hidden, block))](
        products, weights, out, out.stride(0),
        WIDTH=hidden, TOP_K=weights.shape[1], SPLITS=len(products), BLOCK=block, num_warps=4,
    )  # fmt: skip


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    blocks: ExpertBlocks,
    config: ExpertConfig,
    num_pairs: int,
    *,
    pairs_per_row: int,
    gated: bool,
) -> None:
    assert config.block_m == blocks.block_m
    width, depth = out.shape[1], x.shape[1]
    groups = triton.cdiv(blocks.block_experts.shape[0], BLOCK_GROUP)
    _expert_product_kernel[(groups * BLOCK_GROUP * triton.cdiv(width, config.block_n),)](
        x, weight, out, blocks.pairs, blocks.block_experts, blocks.num_blocks,
        x.stride(0), weight.stride(0), out.stride(0), num_pairs,
        WIDTH=width, DEPTH=depth, PAIRS_PER_ROW=pairs_per_row, GATED=gated,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        GROUP=BLOCK_GROUP, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip

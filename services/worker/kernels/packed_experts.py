"""Mixture of experts with weights of 4 or 8 bits: two grouped products and a weighted sum, weights stay packed.

Like `int_product.py`, with the pairs of `expert_routing` for tokens. What codes become before the matrix unit, and on
which side of it they are, is the tile's choice (`packed_config.py`). Where few programs would read a weight its inputs
are split, and the weighted sum adds up the splits too. Called by `models/triton_experts.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INTERPRETED, sm_count
from services.worker.kernels.eight_bits import widened
from services.worker.kernels.expert_mlp import BLOCK_GROUP, weighted_sum
from services.worker.kernels.expert_routing import ExpertBlocks, assign_blocks
from services.worker.kernels.expert_tiles import ExpertTiles
from services.worker.kernels.fp8_rows import fp8_rows
from services.worker.kernels.int_codes import nibbles, scaled_nibbles
from services.worker.kernels.int_tiles import halves
from services.worker.kernels.packed_config import PackedConfig, packed_configs, splits_of, step_inputs_of


@triton.jit
def _scaled_product(
    tile: tl.tensor,
    inputs: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Of 8-bit codes [P, K] with scales [P] and inputs [K, M]: [P, M], staged [M, P]."""
    wide = widened(tile, inputs.dtype)
    if OPERANDS == "staged":
        out = scale[None, :] * tl.dot(tl.trans(inputs), tl.trans(wide), zero, input_precision=PRECISION)
    else:
        out = scale[:, None] * tl.dot(wide, inputs, zero, input_precision=PRECISION)
    return out


@triton.jit(do_not_specialize=["num_pairs"])
def _packed_product_kernel(
    x: tl.tensor,
    x_scales: tl.tensor,
    codes: tl.tensor,
    table: tl.tensor,
    factors: tl.tensor,
    order: tl.tensor,
    out: tl.tensor,
    pairs: tl.tensor,
    block_experts: tl.tensor,
    num_blocks: tl.tensor,
    x_stride: tl.int64,
    num_pairs: tl.int32,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    BASE: tl.constexpr,
    ASM: tl.constexpr,
    PAIRS_PER_ROW: tl.constexpr,
    GATED: tl.constexpr,
    ORDERED: tl.constexpr,
    OPERANDS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # Blocks go through all rows in groups, so that a wave of programs shares inputs and codes in the cache.
    columns = (ROWS + BLOCK_P - 1) // BLOCK_P
    total = tl.load(num_blocks)
    first_block = tl.program_id(0) // (BLOCK_GROUP * columns) * BLOCK_GROUP
    if first_block >= total:
        return
    size = tl.minimum(total - first_block, BLOCK_GROUP)
    place = tl.program_id(0) % (BLOCK_GROUP * columns)
    if place >= size * columns:
        return
    block = first_block + place % size
    expert = tl.load(block_experts + block).to(tl.int64)
    pair = tl.load(pairs + block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = pair < num_pairs
    row = place // size * BLOCK_P + tl.arange(0, BLOCK_P)
    read_row = row % ROWS  # loads without a mask; the stores have one
    depth = tl.arange(0, BLOCK_K)

    # Rows of a weight: BITS == 4 has two features in each; with 8 bits the gated product reads two rows for each.
    TWO: tl.constexpr = GATED or BITS == 4
    CODE_ROWS: tl.constexpr = ROWS * 2 if GATED and BITS == 8 else ROWS
    GROUPS: tl.constexpr = DEPTH // GROUP
    STEPS: tl.constexpr = (DEPTH + BLOCK_K - 1) // BLOCK_K
    SHARE: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    FEATURES: tl.constexpr = ROWS * 2 if TWO else ROWS
    first = tl.program_id(1) * SHARE
    codes_at = codes + (expert * CODE_ROWS + read_row)[:, None] * DEPTH + depth[None, :]
    table_at = table + expert * GROUPS * FEATURES + read_row
    x_row = pair // PAIRS_PER_ROW
    x_rows = x + x_row[None, :] * x_stride
    if OPERANDS == "staged":
        zero = tl.zeros([BLOCK_M, BLOCK_P], tl.float32)
    else:
        zero = tl.zeros([BLOCK_P, BLOCK_M], tl.float32)
    acc = zero
    acc_second = zero
    if BITS == 4:
        factor = tl.load(factors + expert)
        words_at = table_at + tl.minimum(first * BLOCK_K // GROUP, GROUPS - 1) * FEATURES
        words = tl.load(words_at)  # one step ahead of its use
        words_second = tl.load(words_at + ROWS)
    for step in range(first, tl.minimum(first + SHARE, STEPS)):
        start = step * BLOCK_K
        if ORDERED:
            source = tl.load(order + expert * DEPTH + start + depth, mask=depth < DEPTH - start, other=0)
        else:
            source = start + depth
        if DEPTH % BLOCK_K == 0:
            inputs = tl.load(x_rows + source[:, None], mask=real[None, :], other=0.0)
            tile = tl.load(codes_at + start)
        else:
            left = depth < DEPTH - start
            inputs = tl.load(x_rows + source[:, None], mask=real[None, :] & left[:, None], other=0.0)
            tile = tl.load(codes_at + start, mask=left[None, :], other=0.0)
        if BITS == 4:
            scale, offset = halves(words)
            scale_second, offset_second = halves(words_second)
            words_at = table_at + tl.minimum((start + BLOCK_K) // GROUP, GROUPS - 1) * FEATURES
            words = tl.load(words_at)
            words_second = tl.load(words_at + ROWS)
            if OPERANDS == "staged":
                low, high = scaled_nibbles(tile, scale, offset, scale_second, offset_second, inputs.dtype, ASM)
                acc = tl.dot(tl.trans(inputs), tl.trans(low), acc, input_precision=PRECISION)
                acc_second = tl.dot(tl.trans(inputs), tl.trans(high), acc_second, input_precision=PRECISION)
            else:
                low, high, ones = nibbles(tile, inputs.dtype, BASE, ASM)
                acc += scale[:, None] * tl.dot(low, inputs, zero, input_precision=PRECISION)
                acc_second += scale_second[:, None] * tl.dot(high, inputs, zero, input_precision=PRECISION)
                # The tensor cores add up the inputs too: with rows of ones the sums come out where the others do.
                sums = tl.dot(ones, inputs, zero, input_precision=PRECISION)
                acc += (offset - BASE * scale)[:, None] * sums
                acc_second += (offset_second - BASE * scale_second)[:, None] * sums
        else:
            if OPERANDS == "rounded":
                acc = tl.dot(tile, inputs, acc)
            else:
                scale = tl.load(table_at + start // GROUP * FEATURES)
                acc += _scaled_product(tile, inputs, scale, zero, OPERANDS, PRECISION)
            if GATED:
                if DEPTH % BLOCK_K == 0:
                    tile = tl.load(codes_at + ROWS * DEPTH + start)
                else:
                    tile = tl.load(codes_at + ROWS * DEPTH + start, mask=(depth < DEPTH - start)[None, :], other=0.0)
                if OPERANDS == "rounded":
                    acc_second = tl.dot(tile, inputs, acc_second)
                else:
                    scale = tl.load(table_at + start // GROUP * FEATURES + ROWS)
                    acc_second += _scaled_product(tile, inputs, scale, zero, OPERANDS, PRECISION)
    if OPERANDS == "staged":
        acc = tl.trans(acc)
        acc_second = tl.trans(acc_second)
    if BITS == 4:
        acc *= factor
        acc_second *= factor
    if OPERANDS == "rounded":
        x_scale = tl.load(x_scales + x_row, mask=real, other=0.0)
        acc *= tl.load(table_at)[:, None] * x_scale[None, :]
        if GATED:
            acc_second *= tl.load(table_at + ROWS)[:, None] * x_scale[None, :]
    out_at = out + (tl.program_id(1) * num_pairs.to(tl.int64) + pair)[None, :] * WIDTH + row[:, None]
    inside = (row < ROWS)[:, None] & real[None, :]
    if GATED:
        acc = acc / (1.0 + tl.exp(-acc)) * acc_second
        tl.store(out_at, acc.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out_at, acc.to(out.dtype.element_ty), mask=inside)
        if BITS == 4:
            tl.store(out_at + ROWS, acc_second.to(out.dtype.element_ty), mask=inside & (row + ROWS < WIDTH)[:, None])


def packed_expert_mlp(
    x: torch.Tensor,
    gate_up: ExpertTiles,
    down: ExpertTiles,
    weights: torch.Tensor,
    experts: torch.Tensor,
    configs: tuple[PackedConfig, PackedConfig] | None = None,
) -> torch.Tensor:
    """Weighted sum over a token's experts of `down(silu(gate(x)) * up(x))`.

    Args:
        x: [T, N] of 16 or 32 bits, last dimension contiguous.
        gate_up: 2 * I outputs, gate first, N inputs (a rank's share of I under tensor parallelism: the outputs of all
            ranks then add up).
        down: N outputs, I inputs.
        weights, experts: [T, top_k] float32 and int32 of `route`.
        configs: of the gated and of the second product, same block_m; chosen by shape when None.

    Returns:
        [T, N] in the dtype of `x`.
    """
    tokens, hidden = x.shape
    assert gate_up.codes.shape[2] == hidden == down.width
    assert gate_up.width == 2 * down.codes.shape[2]
    out = torch.empty_like(x)
    if tokens == 0:
        return out
    num_experts, pairs, top_k = len(down.codes), experts.numel(), experts.shape[1]
    first, second = configs or packed_configs(pairs / num_experts, gate_up, down, x.dtype)
    blocks = assign_blocks(experts, num_experts, first.block_m)
    inner = gated_product(x, gate_up, blocks, first, top_k)
    weighted_sum(down_product(inner, down, blocks, second), weights, out)
    return out


def gated_product(
    x: torch.Tensor, gate_up: ExpertTiles, blocks: ExpertBlocks, config: PackedConfig, top_k: int
) -> torch.Tensor:
    """silu(gate) * up [P, I] of x [T, N], in its dtype, for the P = T * top_k pairs in `blocks`."""
    inner = torch.empty((1, len(x) * top_k, gate_up.width // 2), dtype=x.dtype, device=x.device)
    _product(x, gate_up, inner, blocks, config, pairs_per_row=top_k, gated=True)
    return inner[0]


def down_product(inner: torch.Tensor, down: ExpertTiles, blocks: ExpertBlocks, config: PackedConfig) -> torch.Tensor:
    """Products [S, P, N] of inner [P, I]; S parts of a sum: in fp32, or one alone in the dtype of `inner`."""
    pairs = len(inner)
    splits = splits_of(down, config, pairs, sm_count(inner.device))
    dtype = torch.float32 if splits > 1 else inner.dtype
    rows = torch.empty((splits, pairs, down.width), dtype=dtype, device=inner.device)
    _product(inner, down, rows, blocks, config, pairs_per_row=1, gated=False)
    return rows


def _product(
    x: torch.Tensor, tiles: ExpertTiles, out: torch.Tensor, blocks: ExpertBlocks, config: PackedConfig, *,
    pairs_per_row: int, gated: bool,
) -> None:  # fmt: skip
    assert config.block_m == blocks.block_m
    assert x.stride(1) == 1
    splits, num_pairs, width = out.shape
    _, rows, depth = tiles.codes.shape
    if gated and tiles.bits == 8:
        rows //= 2
    inputs, scales = x, tiles.table
    if config.operands == "rounded":
        rounded = fp8_rows(x)
        inputs, scales = rounded.codes, rounded.scales
    order = tiles.factors if tiles.order is None else tiles.order
    groups = triton.cdiv(blocks.block_experts.shape[0], BLOCK_GROUP)
    _packed_product_kernel[(groups * BLOCK_GROUP * triton.cdiv(rows, config.block_p), splits)](
        inputs, scales, tiles.codes, tiles.table, tiles.factors, order, out, blocks.pairs, blocks.block_experts,
        blocks.num_blocks, inputs.stride(0), num_pairs,
        WIDTH=width, ROWS=rows, DEPTH=depth, GROUP=tiles.group, BITS=tiles.bits,
        BASE=128 if x.dtype == torch.bfloat16 else 1024 if x.dtype == torch.float16 else 0,
        ASM=not INTERPRETED and x.dtype != torch.float32,
        PAIRS_PER_ROW=pairs_per_row, GATED=gated, ORDERED=tiles.order is not None, OPERANDS=config.operands,
        SPLITS=splits, BLOCK_M=config.block_m, BLOCK_P=config.block_p, BLOCK_K=step_inputs_of(tiles, config),
        BLOCK_GROUP=BLOCK_GROUP, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip

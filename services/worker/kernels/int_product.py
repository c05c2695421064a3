"""Products with weights of 4 or 8 bits: activations stay as they are, weights are expanded next to the tensor cores.

A weight is `code * scale + offset`, scale and offset being those of its group along the inputs. With few tokens codes
go into the matrix unit as they are, as small whole numbers, straight from registers and as the left operand, so that
few tokens waste little of a tile; a group's scale multiplies what came out, and its offset multiplies the sum of the
group's inputs. With more tokens codes of 4 bits become weights first, and all of them go through shared memory and are
the right operand; on Hopper those of 4 bits stay the left one then (`hopper_product.py`). `IntConfig.way` says which.
Programs that share a tile of the output split its inputs; the last one to finish adds up what all have written, always
in the same order. Called by `models/triton_product.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.arrivals import last_to_arrive
from services.worker.kernels.device import INTERPRETED, is_hopper, sm_count
from services.worker.kernels.eight_bits import widened
from services.worker.kernels.int_codes import nibbles, scaled_nibbles
from services.worker.kernels.int_config import IntConfig, fits_hopper, int_config, most_tokens
from services.worker.kernels.int_tiles import IntTiles, halves
from services.worker.kernels.overlap import let_the_next_begin, overlap, prefetch, wait_for_the_one_before
from services.worker.kernels.silu_and_mul import gated

_SUM_TOKENS = 16
"""Above, where codes are multiplied, a launch of its own adds up the inputs; below, the tensor cores do it beside the
product."""


@triton.jit
def _step_sums_kernel(
    x: tl.tensor,
    sums: tl.tensor,
    x_stride: tl.int64,
    DEPTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    step, depth = tl.arange(0, STEPS), tl.arange(0, BLOCK_K)
    at = step[:, None] * BLOCK_K + depth[None, :]
    value = tl.load(x + token * x_stride + at, mask=at < DEPTH, other=0.0).to(tl.float32)
    out = sums + step.to(tl.int64) * tl.num_programs(0) + token
    tl.store(out, tl.sum(value, axis=1), mask=step * BLOCK_K < DEPTH)


@triton.jit(do_not_specialize=["num_tokens", "factor"])
def _int_product_kernel(
    x: tl.tensor,
    codes: tl.tensor,
    table: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    arrivals: tl.tensor,
    sums: tl.tensor,
    num_tokens: tl.int32,
    factor: tl.float32,
    x_stride: tl.int64,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    BASE: tl.constexpr,
    ASM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    SUMMED: tl.constexpr,
    STAGED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    row = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    read_row = row % ROWS  # loads without a mask; the stores have one
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = token < num_tokens
    depth = tl.arange(0, BLOCK_K)
    STEPS: tl.constexpr = (DEPTH + BLOCK_K - 1) // BLOCK_K
    SHARE: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    first = tl.program_id(2) * SHARE
    codes_at = codes + read_row.to(tl.int64)[:, None] * DEPTH + depth[None, :]
    if OVERLAP:  # the memory need not wait for the inputs
        prefetch(codes + read_row.to(tl.int64) * DEPTH + tl.minimum(first * BLOCK_K, DEPTH - 1))
    x_at = x + token.to(tl.int64)[None, :] * x_stride + depth[:, None]
    if STAGED:
        zero = tl.zeros([BLOCK_M, BLOCK_P], tl.float32)
    else:
        zero = tl.zeros([BLOCK_P, BLOCK_M], tl.float32)
    acc = zero
    acc_odd = zero
    if BITS == 4:
        LAST_GROUP: tl.constexpr = DEPTH // GROUP - 1
        words_at = table + read_row
        if not STAGED:
            first_at = words_at + tl.minimum(first * BLOCK_K // GROUP, LAST_GROUP) * 2 * ROWS
            words = tl.load(first_at)  # one step ahead of its use
            words_odd = tl.load(first_at + ROWS)
    wait_for_the_one_before(OVERLAP)
    if SUMMED:
        first_step = tl.minimum(first, STEPS - 1)
        step_sums = tl.load(sums + first_step.to(tl.int64) * num_tokens + token, mask=real, other=0.0)
    for step in range(first, tl.minimum(first + SHARE, STEPS)):
        start = step * BLOCK_K
        if DEPTH % BLOCK_K == 0:
            inputs = tl.load(x_at + start, mask=real[None, :], other=0.0)
            tile = tl.load(codes_at + start, eviction_policy="evict_first")
        else:
            left = depth < DEPTH - start
            inputs = tl.load(x_at + start, mask=real[None, :] & left[:, None], other=0.0)
            tile = tl.load(codes_at + start, mask=left[None, :], other=0.0)
        if BITS == 8:
            scale = tl.load(table + (start // GROUP) * ROWS + read_row).to(tl.float32)
            wide = widened(tile, inputs.dtype)
            if STAGED:
                acc += scale[None, :] * tl.dot(tl.trans(inputs), tl.trans(wide), zero, input_precision=PRECISION)
            else:
                acc += scale[:, None] * tl.dot(wide, inputs, zero, input_precision=PRECISION)
        else:
            if STAGED:
                words = tl.load(words_at + start // GROUP * 2 * ROWS)
                words_odd = tl.load(words_at + start // GROUP * 2 * ROWS + ROWS)
            scale, offset = halves(words)
            scale_odd, offset_odd = halves(words_odd)
            if STAGED:
                low, high = scaled_nibbles(tile, scale, offset, scale_odd, offset_odd, inputs.dtype, ASM)
                acc = tl.dot(tl.trans(inputs), tl.trans(low), acc, input_precision=PRECISION)
                acc_odd = tl.dot(tl.trans(inputs), tl.trans(high), acc_odd, input_precision=PRECISION)
            else:
                next_at = words_at + tl.minimum((start + BLOCK_K) // GROUP, LAST_GROUP) * 2 * ROWS
                words = tl.load(next_at)
                words_odd = tl.load(next_at + ROWS)
                low, high, ones = nibbles(tile, inputs.dtype, BASE, ASM)
                acc += scale[:, None] * tl.dot(low, inputs, zero, input_precision=PRECISION)
                acc_odd += scale_odd[:, None] * tl.dot(high, inputs, zero, input_precision=PRECISION)
                if SUMMED:
                    total = step_sums[None, :]
                    next_step = tl.minimum(step + 1, STEPS - 1)
                    step_sums = tl.load(sums + next_step.to(tl.int64) * num_tokens + token, mask=real, other=0.0)
                else:
                    # The tensor cores add up the inputs too: with rows of ones the sums come out where the others do.
                    total = tl.dot(ones, inputs, zero, input_precision=PRECISION)
                acc += (offset - BASE * scale)[:, None] * total
                acc_odd += (offset_odd - BASE * scale_odd)[:, None] * total
    let_the_next_begin(OVERLAP)
    if STAGED:
        acc = tl.trans(acc)
        acc_odd = tl.trans(acc_odd)
    acc *= factor
    acc_odd *= factor
    inside = (row < ROWS)[:, None] & real[None, :]
    FEATURES: tl.constexpr = 1 if BITS == 8 else 2
    if SPLITS > 1:
        # Parts [S, FEATURES, T, ROWS]: what a program writes are whole lines of memory.
        half = num_tokens.to(tl.int64) * ROWS
        part_at = token[None, :] * ROWS + row[:, None]
        mine = partial + tl.program_id(2) * FEATURES * half
        tl.store(mine + part_at, acc, mask=inside)
        if BITS == 4:
            tl.store(mine + half + part_at, acc_odd, mask=inside)
        if not last_to_arrive(arrivals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), SPLITS):
            return
        acc = tl.zeros([BLOCK_P, BLOCK_M], tl.float32)
        acc_odd = tl.zeros([BLOCK_P, BLOCK_M], tl.float32)
        for split in range(SPLITS):
            part = partial + split * FEATURES * half + part_at
            acc += tl.load(part, mask=inside, other=0.0, cache_modifier=".cg")
            if BITS == 4:
                acc_odd += tl.load(part + half, mask=inside, other=0.0, cache_modifier=".cg")
    NEXT: tl.constexpr = 1 if GATED else FEATURES  # outputs from one row to the next, and from its even to its odd one
    TO_ODD: tl.constexpr = ROWS if GATED else 1
    if HAS_BIAS:
        acc += tl.load(bias + read_row * NEXT).to(tl.float32)[:, None]
        if BITS == 4:
            acc_odd += tl.load(bias + read_row * NEXT + TO_ODD).to(tl.float32)[:, None]
    at = token[None, :] * (ROWS * NEXT) + row[:, None] * NEXT
    if GATED:
        tl.store(out + at, gated(acc, acc_odd).to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)
        if BITS == 4:
            tl.store(out + at + TO_ODD, acc_odd.to(out.dtype.element_ty), mask=inside)


def int_product(
    x: torch.Tensor,
    tiles: IntTiles,
    bias: torch.Tensor | None,
    arrivals: torch.Tensor,
    config: IntConfig | None = None,
) -> torch.Tensor:
    """x W^T + b.

    Args:
        x: [T, K], last dimension contiguous, of 16 or 32 bits.
        bias: [N]
        arrivals: `arrival_counters` of the device, zeros before and after; products that share it run one by one.
        config: chosen by shape when None.

    Returns:
        [T, N] in the dtype of `x`; silu(gate) * up [T, N / 2] of weights that are `gated`.
    """
    tokens, (rows, depth) = x.shape[0], tiles.codes.shape
    assert x.shape[1] == depth
    assert x.stride(1) == 1
    assert tokens * tiles.width < 1 << 31  # offsets of 32 bits, which leave more registers
    outputs = tiles.width // 2 if tiles.gated else tiles.width
    out = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    if tokens == 0:
        return out
    config = config or chosen_config(x, tiles)
    grid = (triton.cdiv(tokens, config.block_m), triton.cdiv(rows, config.block_p), config.splits)
    assert grid[0] * grid[1] <= arrivals.numel()
    partial = out
    if config.splits > 1:
        partial = torch.empty((config.splits, tokens, tiles.width), dtype=torch.float32, device=x.device)
    if config.way == "hopper":
        from services.worker.kernels.hopper_product import hopper_product  # Gluon is experimental: only where it runs

        hopper_product(x, tiles, bias, out, partial, arrivals, config)
        return out
    staged = config.way == "staged"
    summed = tiles.bits == 4 and not staged and tokens > _SUM_TOKENS
    sums = _step_sums(x, config.block_k) if summed else partial
    _int_product_kernel[grid](
        x, tiles.codes, tiles.table, out if bias is None else bias, out, partial, arrivals, sums, tokens, tiles.factor,
        x.stride(0),
        ROWS=rows, DEPTH=depth, GROUP=tiles.group, BITS=tiles.bits,
        BASE=128 if x.dtype == torch.bfloat16 else 1024 if x.dtype == torch.float16 else 0,
        ASM=not INTERPRETED and x.dtype != torch.float32, HAS_BIAS=bias is not None,
        GATED=tiles.gated, SUMMED=summed, STAGED=staged, SPLITS=config.splits,
        BLOCK_M=config.block_m, BLOCK_P=config.block_p, BLOCK_K=config.block_k,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps, num_stages=config.num_stages, **overlap(x.device),
    )  # fmt: skip
    return out


def chosen_config(x: torch.Tensor, tiles: IntTiles) -> IntConfig:
    """The tile for a product."""
    return int_config(len(x), tiles, sm_count(x.device), hopper=_hopper(x, tiles))


def expands(x: torch.Tensor, tiles: IntTiles) -> bool:
    """Whether there are so many tokens that a product with the weight expanded beforehand costs less."""
    return len(x) > most_tokens(_hopper(x, tiles))


def _hopper(x: torch.Tensor, tiles: IntTiles) -> bool:
    return is_hopper(x.device) and fits_hopper(tiles, x.dtype)


def _step_sums(x: torch.Tensor, block_k: int) -> torch.Tensor:
    """Sums of `block_k` neighbouring inputs [K / block_k, T] float32."""
    tokens, depth = x.shape
    steps = triton.cdiv(depth, block_k)
    sums = torch.empty((steps, tokens), dtype=torch.float32, device=x.device)
    _step_sums_kernel[(tokens,)](
        x, sums, x.stride(0), DEPTH=depth, BLOCK_K=block_k, STEPS=triton.next_power_of_2(steps), num_warps=8,
        **overlap(x.device),
    )  # fmt: skip
    return sums

"""Products of 8-bit floats for some tens of tokens, where the time is that of reading the weight.

Both sides are e4m3, activations with a scale for each token and weights with one for each output; scales multiply what
comes out. Weights are the left operand, and both reach the tensor cores from shared memory without passing through
registers. Where outputs are too few to keep every multiprocessor reading, programs that share a tile of the output
split its inputs, and the last one to finish adds up what all have written, always in the same order. Knows nothing of
how activations are rounded (`fp8_rows.py`). Called by `models/triton_product.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from services.worker.kernels.arrivals import last_to_arrive
from services.worker.kernels.device import sm_count
from services.worker.kernels.fp8_rows import FP8
from services.worker.kernels.overlap import let_the_next_begin, overlap, prefetch, wait_for_the_one_before

MOST_TOKENS = 128
"""Above, the tensor cores are what is waited for, and torch's product is as fast."""
_FEW_TOKENS, _WIDE = 32, 16384
_PROGRAMS_PER_SM, _LEAST_STEPS = 2, 28


@dataclass(frozen=True, slots=True)
class Fp8Config:
    """Tile of a product."""

    block_m: int
    """Tokens."""
    block_p: int
    """Outputs."""
    block_k: int
    num_warps: int
    num_stages: int
    splits: int


def fp8_config(tokens: int, width: int, depth: int, sms: int) -> Fp8Config:
    """The choice for a Hopper card. Adding up parts costs as much as a few dozen steps: only long inputs are split.

    Measured with the products of an 8B layer (`benchmarks.quantization --sections products --search`).
    """
    if tokens <= _FEW_TOKENS:
        block_m, block_k, num_stages = 32, 256, 4
    elif tokens > 64 and width >= _WIDE:
        block_m, block_k, num_stages = 128, 128, 4
    else:
        block_m, block_k, num_stages = 64, 128, 5
    block_p = 64
    programs = triton.cdiv(tokens, block_m) * triton.cdiv(width, block_p)
    steps, splits = triton.cdiv(depth, block_k), 1
    while 2 * splits * programs <= sms * _PROGRAMS_PER_SM and steps >= 2 * _LEAST_STEPS * splits:
        splits *= 2
    return Fp8Config(block_m, block_p, block_k, 4, num_stages, splits)


@triton.jit(do_not_specialize=["num_tokens"])
def _fp8_product_kernel(
    x: tl.tensor,
    x_scales: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    arrivals: tl.tensor,
    num_tokens: tl.int32,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    # Tiles of tokens come first: those that read the same codes run at the same time.
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    read_row = row % WIDTH  # loads without a mask; the stores have one
    real = token < num_tokens
    depth = tl.arange(0, BLOCK_K)
    STEPS: tl.constexpr = (DEPTH + BLOCK_K - 1) // BLOCK_K
    SHARE: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    first = tl.program_id(2) * SHARE
    codes_at = codes + read_row.to(tl.int64)[:, None] * DEPTH + depth[None, :]
    if OVERLAP:  # the memory need not wait for the inputs
        prefetch(codes + read_row.to(tl.int64) * DEPTH + tl.minimum(first * BLOCK_K, DEPTH - 1))
    x_at = x + token.to(tl.int64)[None, :] * DEPTH + depth[:, None]
    acc = tl.zeros([BLOCK_P, BLOCK_M], tl.float32)
    wait_for_the_one_before(OVERLAP)
    for step in range(first, tl.minimum(first + SHARE, STEPS)):
        start = step * BLOCK_K
        if DEPTH % BLOCK_K == 0:
            inputs = tl.load(x_at + start, mask=real[None, :], other=0.0)
            tile = tl.load(codes_at + start, eviction_policy="evict_first")
        else:
            left = depth < DEPTH - start
            inputs = tl.load(x_at + start, mask=real[None, :] & left[:, None], other=0.0)
            tile = tl.load(codes_at + start, mask=left[None, :], other=0.0)
        acc = tl.dot(tile, inputs, acc)
    let_the_next_begin(OVERLAP)
    inside = (row < WIDTH)[:, None] & real[None, :]
    at = token[None, :] * WIDTH + row[:, None]
    if SPLITS > 1:
        size = num_tokens.to(tl.int64) * WIDTH
        tl.store(partial + tl.program_id(2) * size + at, acc, mask=inside)
        if not last_to_arrive(arrivals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), SPLITS):
            return
        acc = tl.zeros([BLOCK_P, BLOCK_M], tl.float32)
        for split in range(SPLITS):
            acc += tl.load(partial + split * size + at, mask=inside, other=0.0, cache_modifier=".cg")
    acc *= tl.load(x_scales + token, mask=real, other=0.0)[None, :] * tl.load(scales + read_row)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias + read_row).to(tl.float32)[:, None]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)


def fp8_product(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    arrivals: torch.Tensor,
    dtype: torch.dtype,
    config: Fp8Config | None = None,
) -> torch.Tensor:
    """(x * x_scales) (codes * scales)^T + b.

    Args:
        x: [T, K] e4m3, contiguous, as `fp8_rows` makes it; K a multiple of 16.
        x_scales: [T, 1] float32.
        codes: [N, K] e4m3, contiguous.
        scales: [1, N] float32.
        bias: [N]
        arrivals: `arrival_counters` of the device, zeros before and after; products that share it run one by one.
        dtype: of the result.
        config: chosen by shape when None.

    Returns:
        [T, N] in `dtype`.
    """
    tokens, (width, depth) = x.shape[0], codes.shape
    assert x.dtype == codes.dtype == FP8
    assert x.shape[1] == depth
    assert depth % 16 == 0
    assert x.is_contiguous()
    assert codes.is_contiguous()
    assert tokens * width < 1 << 31  # offsets of 32 bits, so that two programs have room for their registers
    out = torch.empty((tokens, width), dtype=dtype, device=x.device)
    if tokens == 0:
        return out
    config = config or fp8_config(tokens, width, depth, sm_count(x.device))
    grid = (triton.cdiv(tokens, config.block_m), triton.cdiv(width, config.block_p), config.splits)
    assert grid[0] * grid[1] <= arrivals.numel()
    partial = out
    if config.splits > 1:
        partial = torch.empty((config.splits, tokens, width), dtype=torch.float32, device=x.device)
    _fp8_product_kernel[grid](
        x, x_scales, codes, scales, out if bias is None else bias, out, partial, arrivals, tokens,
        WIDTH=width, DEPTH=depth, HAS_BIAS=bias is not None, SPLITS=config.splits,
        BLOCK_M=config.block_m, BLOCK_P=config.block_p, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages, **overlap(x.device),
    )  # fmt: skip
    return out

"""Tiles of products with packed weights, and which of them is for how many tokens. Knows no kernel; called by
`int_product.py`.

Measured with the products of an 8B layer on an H100 (`benchmarks.quantization --sections products --search`).
"""

from __future__ import annotations

from dataclasses import dataclass

from services.worker.kernels.int_tiles import IntTiles

MOST_TOKENS = 256
"""Above, expanding the weight once costs less than expanding it for every tile of tokens."""
_MOST_DIRECT = {4: 32, 8: 16}
"""Tokens, by bits, up to which codes go to the matrix unit from registers."""
_MOST_SPLITS, _LEAST_STEPS = 16, 4
_WARPS_PER_SM = 12
_LOW_ROWS, _LEAST_STAGED_STEPS = 4096, 8


@dataclass(frozen=True, slots=True)
class IntConfig:
    """Tile of a product."""

    block_m: int
    """Tokens."""
    block_p: int
    """Rows of `codes`."""
    block_k: int
    num_warps: int
    num_stages: int
    splits: int
    staged: bool = False
    """Weights go through shared memory, as the right operand of the matrix unit; else from registers, as the left."""


def int_config(tokens: int, tiles: IntTiles, sms: int) -> IntConfig:
    """The choice for a Hopper card."""
    if tokens <= _MOST_DIRECT[tiles.bits]:
        return _direct(tokens, tiles, sms)
    return _staged(tokens, tiles, sms)


def _direct(tokens: int, tiles: IntTiles, sms: int) -> IntConfig:
    """As many small programs as keep the memory busy."""
    rows, depth = tiles.codes.shape
    block_m = 8 if tokens <= 8 else 16 if tokens <= 16 else 32
    block_p, block_k, num_warps, num_stages = 32, step_inputs(tiles.group, depth), 2, 4
    programs, steps, splits = -(-rows // block_p), -(-depth // block_k), 1
    wanted = sms * _WARPS_PER_SM // num_warps
    while splits < _MOST_SPLITS and programs * splits < wanted and steps >= 2 * _LEAST_STEPS * splits:
        splits *= 2
    return IntConfig(block_m, block_p, block_k, num_warps, num_stages, splits)


def _staged(tokens: int, tiles: IntTiles, sms: int) -> IntConfig:
    """One wave of programs, or as much of one as inputs are long enough for: while some put weights into shared memory,
    others on the same multiprocessor multiply."""
    rows, depth = tiles.codes.shape
    low = tiles.bits == 4 and rows <= _LOW_ROWS
    if low and tokens <= 128:
        block_m, block_p, most_k, num_warps, num_stages, programs_per_sm = 64, 64, 128, 4, 3, 2
    elif low:
        block_m, block_p, most_k, num_warps, num_stages, programs_per_sm = 128, 32, 64, 4, 4, 2
    elif tokens <= 64:
        block_m, block_p, most_k, num_warps, num_stages, programs_per_sm = 64, 64, 64, 4, 4, 3 if tiles.bits == 4 else 4
    else:
        block_m, block_p, most_k, num_warps, num_stages, programs_per_sm = 128, 64, 64, 4, 3, 2
    block_k = min(most_k, step_inputs(tiles.group, depth))
    programs, steps, splits = -(-rows // block_p) * -(-tokens // block_m), -(-depth // block_k), 1
    while 2 * splits * programs <= sms * programs_per_sm and steps >= 2 * _LEAST_STAGED_STEPS * splits:
        splits *= 2
    return IntConfig(block_m, block_p, block_k, num_warps, num_stages, splits, staged=True)


def step_inputs(group: int, depth: int) -> int:
    """Inputs of one step, all of one group."""
    if group == depth:
        return min(128, max(16, 1 << (depth - 1).bit_length()))
    return min(128, group & -group)

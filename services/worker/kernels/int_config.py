"""Tiles of products with packed weights, and which of them is for how many tokens. Knows no kernel; called by
`int_product.py`.

Measured with the products of an 8B layer on an H100 (`benchmarks.quantization --sections products --search`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from services.worker.kernels.int_tiles import IntTiles

_MOST_DIRECT = {4: 32, 8: 16}
"""Tokens, by bits, up to which codes go to the matrix unit from registers."""
_MOST_DIRECT_HOPPER = 16
_MOST_TOKENS, _MOST_TOKENS_HOPPER = 256, 1024
_MOST_SPLITS, _LEAST_STEPS = 16, 4
_WARPS_PER_SM = 12
_LOW_ROWS, _LEAST_STAGED_STEPS = 4096, 8
_HOPPER_INPUTS = 128
"""Of the largest step there."""
Way = Literal["direct", "staged", "hopper"]
"""How weights come to the matrix unit. *direct*: codes from registers, as the left operand; *staged*: weights through
shared memory, as the right; *hopper*: weights from registers, made while others are multiplied."""


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
    way: Way = "direct"


def fits_hopper(tiles: IntTiles, dtype: torch.dtype) -> bool:
    """Whether `hopper_product.py` can multiply by this weight: steps of 64 and of 128 inputs are whole, and either have
    whole groups or lie within one."""
    depth, group = tiles.codes.shape[1], tiles.group
    steps_fit = group % _HOPPER_INPUTS == 0 or group in (16, 32, 64)
    return tiles.bits == 4 and dtype.itemsize == 2 and depth % _HOPPER_INPUTS == 0 and steps_fit


def most_tokens(hopper: bool) -> int:
    """Above, expanding the weight once costs less than expanding it for every tile of tokens."""
    return _MOST_TOKENS_HOPPER if hopper else _MOST_TOKENS


def int_config(tokens: int, tiles: IntTiles, sms: int, *, hopper: bool) -> IntConfig:
    """
    Args:
        hopper: the card is one and the product `fits_hopper`.
    """
    if tokens <= (_MOST_DIRECT_HOPPER if hopper else _MOST_DIRECT[tiles.bits]):
        return _direct(tokens, tiles, sms)
    return _hopper(tokens, tiles, sms) if hopper else _staged(tokens, tiles, sms)


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
    return IntConfig(block_m, block_p, block_k, num_warps, num_stages, splits, "staged")


def _hopper(tokens: int, tiles: IntTiles, sms: int) -> IntConfig:
    """One wave of programs, or as much of one as inputs are long enough for."""
    rows, depth = tiles.codes.shape
    if tokens <= 32:
        block_m, block_k, num_stages, programs_per_sm, least_steps = 32, 128, 3, 3, 8
    elif tokens <= 64 or (tokens <= 128 and rows <= _LOW_ROWS):
        block_m, block_k, num_stages, programs_per_sm, least_steps = 64, 128, 3, 2, 8
    else:
        block_m, block_k, num_stages, programs_per_sm, least_steps = 128, 64, 4, 2, 32
    block_p, num_warps = 64, 4
    programs = -(-rows // block_p) * -(-tokens // block_m)
    steps = depth // block_k
    splits = max(1, min(sms * programs_per_sm // programs, steps // least_steps, _MOST_SPLITS))
    splits = -(-steps // -(-steps // splits))  # as many as have steps to do
    return IntConfig(block_m, block_p, block_k, num_warps, num_stages, splits, "hopper")


def step_inputs(group: int, depth: int) -> int:
    """Inputs of one step, all of one group."""
    if group == depth:
        return min(128, max(16, 1 << (depth - 1).bit_length()))
    return min(128, group & -group)

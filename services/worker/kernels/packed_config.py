"""Tiles of the grouped products of packed experts, and which of them is for how many tokens. Knows no kernel; called by
`packed_experts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from services.worker.kernels.expert_tiles import ExpertTiles
from services.worker.kernels.fp8_rows import FP8
from services.worker.kernels.int_config import step_inputs

Operands = Literal["codes", "staged", "rounded"]
"""What the matrix unit multiplies.

codes: codes as small numbers, from registers and as the left operand, so that few pairs waste little of a tile; a
group's scale multiplies what comes out, which costs least for each code.
staged: through shared memory and as the right operand, which costs least for each pair; codes of 4 bits are scaled
before, those of 8 after.
rounded: codes as they are, and activations in 8 bits, each row with a scale of its own; 8-bit floats with one scale an
output only.
"""


@dataclass(frozen=True, slots=True)
class PackedConfig:
    """Tile of a grouped product."""

    block_m: int
    """Pairs."""
    block_p: int
    """Rows of codes; of 8 bits and gated: of gate and of up each."""
    block_k: int
    """At most; a step is also within one group."""
    num_warps: int
    num_stages: int
    operands: Operands


_BLOCKS = [(4, 8), (20, 16), (96, 64)]
"""Most pairs that an expert gets in the mean, then pairs of a tile; above, `_MOST_PAIRS`. All of this was measured with
the experts of Mixtral-8x7B and Qwen3-30B-A3B (`benchmarks.quantization --sections experts --search`)."""
_ROUNDED_BLOCKS = [(4, 8), (12, 16), (96, 64)]
"""The same where activations may be rounded: then tiles of 64 win early."""
_MOST_PAIRS = 128
_Pair = tuple[PackedConfig, PackedConfig]
"""Of the gated product and of the second one."""
_FOUR_BITS: dict[int, _Pair] = {
    8: (PackedConfig(8, 32, 128, 2, 4, "codes"), PackedConfig(8, 32, 128, 2, 4, "codes")),
    16: (PackedConfig(16, 32, 128, 2, 4, "codes"), PackedConfig(16, 32, 128, 2, 4, "codes")),
    64: (PackedConfig(64, 64, 64, 4, 4, "staged"), PackedConfig(64, 64, 64, 4, 4, "staged")),
    128: (PackedConfig(128, 64, 64, 4, 3, "staged"), PackedConfig(128, 64, 64, 4, 3, "staged")),
}
"""By pairs of a tile, as are the others."""
_EIGHT_BITS: dict[int, _Pair] = {
    8: (PackedConfig(8, 32, 128, 2, 4, "codes"), PackedConfig(8, 32, 128, 2, 4, "codes")),
    16: (PackedConfig(16, 32, 128, 2, 4, "codes"), PackedConfig(16, 32, 128, 2, 4, "codes")),
    64: (PackedConfig(64, 64, 64, 4, 4, "staged"), PackedConfig(64, 64, 64, 4, 4, "staged")),
    128: (PackedConfig(128, 64, 64, 8, 3, "staged"), PackedConfig(128, 64, 64, 8, 3, "staged")),
}
_ROUNDED: dict[int, _Pair] = {
    64: (PackedConfig(64, 64, 128, 4, 4, "rounded"), PackedConfig(64, 64, 128, 4, 4, "rounded")),
    128: (PackedConfig(128, 128, 128, 8, 3, "rounded"), PackedConfig(128, 128, 128, 8, 3, "rounded")),
}
_MOST_SPLITS, _LEAST_STEPS, _WARPS_PER_SM = 8, 4, 12


def packed_configs(
    pairs_per_expert: float, gate_up: ExpertTiles, down: ExpertTiles, dtype: torch.dtype
) -> tuple[PackedConfig, PackedConfig]:
    """The choice for a Hopper card, of the gated and of the second product, with the same `block_m`.

    Args:
        pairs_per_expert: mean pairs of an expert; few: the bytes of the codes limit, many: the tensor cores.
        dtype: of activations.
    """
    roundable = [_roundable(tiles, dtype) for tiles in (gate_up, down)]
    blocks = _ROUNDED_BLOCKS if all(roundable) else _BLOCKS
    block_m = next((block for most, block in blocks if pairs_per_expert <= most), _MOST_PAIRS)
    tables = [
        _FOUR_BITS if tiles.bits == 4 else _ROUNDED if can and block_m in _ROUNDED else _EIGHT_BITS
        for tiles, can in zip((gate_up, down), roundable, strict=True)
    ]
    return tables[0][block_m][0], tables[1][block_m][1]


def _roundable(tiles: ExpertTiles, dtype: torch.dtype) -> bool:
    return tiles.codes.dtype == FP8 and tiles.table.shape[1] == 1 and dtype == torch.bfloat16


def step_inputs_of(tiles: ExpertTiles, config: PackedConfig) -> int:
    """Inputs of one step."""
    return min(config.block_k, step_inputs(tiles.group, tiles.codes.shape[2]))


def splits_of(tiles: ExpertTiles, config: PackedConfig, pairs: int, sms: int) -> int:
    """Parts of the inputs, so that as many programs as keep the memory busy read the weights."""
    num_experts, rows, depth = tiles.codes.shape
    steps, splits = -(-depth // step_inputs_of(tiles, config)), 1
    blocks = max(min(pairs, num_experts), pairs // config.block_m)
    programs = blocks * -(-rows // config.block_p)
    wanted = sms * _WARPS_PER_SM // config.num_warps
    while splits < _MOST_SPLITS and programs * splits < wanted and steps >= 2 * _LEAST_STEPS * splits:
        splits *= 2
    return splits

"""Blocks of GGUF files, kept byte for byte in a checkpoint as `weight_blocks`: Q4_0, Q4_1, Q4_K, Q6_K, Q8_0.

`rhizome/models/gguf_convert.py` writes such checkpoints. Source: the block structures of ggml (`ggml-common.h`) and
their dequantization (`ggml-quants.c`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.worker.quantization.stored import Part, Shapes, Stored, cover, groups_of
from services.worker.quantization.weights import IntWeight
from shared.checkpoint.checkpoint_names import canonical
from shared.checkpoint.target import Target
from shared.errors import ConfigError

Parsed = tuple[Tensor, Tensor, Tensor | None]
"""Codes [N, K], scales and offsets [N, groups]."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """How weights are laid out in a block."""

    weights: int
    nbytes: int
    bits: int
    """Of the internal form."""
    group: int
    """Weights that share a scale."""
    parse: Callable[[Tensor], Parsed]
    """From blocks [N, B, nbytes] uint8."""


class Gguf:
    """The scheme `gguf`."""

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: a type of blocks that is not known.
        """
        types: dict[str, str] = config.get("types") or {}
        self._types = {canonical(f"{name}.weight").removesuffix(".weight"): kind for name, kind in types.items()}
        unknown = [(name, kind) for name, kind in types.items() if kind not in BLOCK_TYPES]
        if unknown:
            name, kind = unknown[0]
            raise ConfigError(f"{name}: GGUF type {kind} is not supported: use {', '.join(BLOCK_TYPES)}")
        self.name = f"gguf {' '.join(sorted(set(self._types.values())))}"

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        kind = self._types.get(part.name)
        if kind is None:
            return None
        block = BLOCK_TYPES[kind]
        if part.in_features % block.weights:
            raise ConfigError(f"{part.name}: {part.in_features} inputs are no whole {kind} blocks of {block.weights}")
        blocks = cover(part.columns, block.weights)
        taken = slice(blocks.take.start * block.nbytes, blocks.take.stop * block.nbytes)
        data = torch.empty((part.width, taken.stop - taken.start), dtype=torch.uint8, device=device)
        full = part.out_features, part.in_features // block.weights * block.nbytes

        def read() -> IntWeight:
            codes, scales, offsets = block.parse(data.view(part.width, -1, block.nbytes))
            groups = groups_of(part, block.group)
            first = blocks.take.start * block.weights // block.group
            mine = slice(groups.take.start - first, groups.take.stop - first)
            return IntWeight(
                block.bits, codes[:, blocks.keep].contiguous(), groups.of(scales[:, mine]).contiguous(),
                None if offsets is None else groups.of(offsets[:, mine]).contiguous(),
            )  # fmt: skip

        return Stored({"weight_blocks": Target(data, full, (part.rows, taken))}, read)


def _halves(blocks: Tensor, at: int, count: int = 1) -> Tensor:
    """float16 numbers in blocks [N, B, nbytes], from byte `at` on: [N, B, count] fp32."""
    return blocks[..., at : at + 2 * count].contiguous().view(torch.float16).float()


def _nibbles(data: Tensor) -> Tensor:
    """Bytes [..., n] to codes [..., 2 n]: all low halves, then all high ones."""
    return torch.cat((data & 15, data >> 4), dim=-1)


def _q4_0(blocks: Tensor) -> Parsed:
    scales = _halves(blocks, 0).flatten(1)
    return _nibbles(blocks[..., 2:]).flatten(1), scales, -8.0 * scales


def _q4_1(blocks: Tensor) -> Parsed:
    return _nibbles(blocks[..., 4:]).flatten(1), _halves(blocks, 0).flatten(1), _halves(blocks, 2).flatten(1)


def _q8_0(blocks: Tensor) -> Parsed:
    return blocks[..., 2:].contiguous().view(torch.int8).flatten(1), _halves(blocks, 0).flatten(1), None


def _q4_k(blocks: Tensor) -> Parsed:
    """Eight groups of 32 whose scale and least value take 6 bits each, beside two factors for them."""
    factor, least_factor = _halves(blocks, 0), _halves(blocks, 2)
    first, second, third = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), dim=-1)
    least = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), dim=-1)
    codes = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return codes.flatten(1), (factor * scales).flatten(1), (-least_factor * least).flatten(1)


def _q6_k(blocks: Tensor) -> Parsed:
    """Sixteen groups of 16: four bits of a code in one place, two in another."""
    low, high = blocks[..., :128], blocks[..., 128:192]
    low, high = low.reshape(*low.shape[:2], 2, 2, 32), high.reshape(*high.shape[:2], 2, 1, 32)
    low = torch.cat((low & 15, low >> 4), dim=-2)  # [N, B, 2, 4, 32]
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device).view(4, 1)
    codes = (low | ((high >> shifts & 3) << 4)).to(torch.int8) - 32
    scales = blocks[..., 192:208].contiguous().view(torch.int8).float() * _halves(blocks, 208)
    return codes.flatten(1), scales.flatten(1), None


BLOCK_TYPES = {
    "Q4_0": BlockType(32, 18, 4, 32, _q4_0),
    "Q4_1": BlockType(32, 20, 4, 32, _q4_1),
    "Q4_K": BlockType(256, 144, 4, 32, _q4_k),
    "Q6_K": BlockType(256, 210, 8, 16, _q6_k),
    "Q8_0": BlockType(32, 34, 8, 32, _q8_0),
}

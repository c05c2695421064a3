"""8-bit floats: one scale for a tensor, one for each output, or one for each block of outputs and inputs.

Products that checkpoints of `quant_method` fp8 hold, those of compressed-tensors with float weights, and plain weights
that are rounded when they are loaded. Scales of activations that a checkpoint fixes are not read (`unread.py`): each
token gets its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from services.worker.quantization.stored import LEAST_GROUP, Part, Shapes, Stored, usually_plain
from services.worker.quantization.weights import FP8, Fp8Weight, fp8_of
from shared.checkpoint.target import Target, whole
from shared.errors import ConfigError


class Fp8:
    """The scheme `fp8`: tensors, or blocks as in DeepSeek's and Qwen3's checkpoints.

    Both names of the scales mean factors. A scale by tensor has either one, a scale by block the second.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: other floats than e4m3.
        """
        kind = str(config.get("fmt", "e4m3"))
        if kind not in ("e4m3", "float8_e4m3fn"):
            raise ConfigError(f"8-bit floats of kind {kind!r} are not supported: use a checkpoint with e4m3")
        block = config.get("weight_block_size")
        self._block = (int(block[0]), int(block[1])) if block else None
        self.name = f"fp8 blocks of {self._block[0]} x {self._block[1]}" if self._block else "fp8"

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        names = ("weight_scale_inv",) if self._block else ("weight_scale", "weight_scale_inv")
        if shapes is None:
            return None if usually_plain(part.name) else fp8_stored(part, names[0], self._block, None, device)
        scale = next((name for name in names if f"{part.name}.{name}" in shapes), None)
        return None if scale is None else fp8_stored(part, scale, self._block, shapes, device)


class RoundedToFp8:
    """Plain weights of any checkpoint, rounded as they are read (--quantization fp8): no plain one is ever whole."""

    name = "fp8, rounded while loading"

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        if usually_plain(part.name):
            return None
        codes = torch.empty((part.width, part.depth), dtype=FP8, device=device)
        scales = torch.empty((part.width, 1), dtype=torch.float32, device=device)

        def write(values: Tensor, rows: slice) -> None:
            rounded = fp8_of(values)
            codes[rows], scales[rows] = rounded.codes, rounded.scales

        target = Target(codes, (part.out_features, part.in_features), (part.rows, part.columns), write=write)
        return Stored({"weight": target}, lambda: Fp8Weight(codes, scales))


def fp8_stored(
    part: Part, scale: str, block: tuple[int, int] | None, shapes: Shapes | None, device: torch.device
) -> Stored:
    """A weight of 8-bit floats beside its scales.

    Args:
        scale: name of the tensor that weights are to be multiplied by.
        block: outputs and inputs that share one; None = the tensor's shape says what does.
    """
    codes = torch.empty((part.width, part.depth), dtype=FP8, device=device)
    targets = {"weight": Target(codes, (part.out_features, part.in_features), (part.rows, part.columns))}
    full: tuple[int, ...] = (1,)
    if block is not None:
        full = -(-part.out_features // block[0]), -(-part.in_features // block[1])
    elif shapes is not None:
        full = shapes[f"{part.name}.{scale}"]
    scales = torch.empty(full, dtype=torch.float32, device=device)
    targets[scale] = whole(scales)

    def read() -> Fp8Weight:
        return Fp8Weight(codes, _scales(part, scales, block).contiguous())

    return Stored(targets, read)


def _scales(part: Part, scales: Tensor, block: tuple[int, int] | None) -> Tensor:
    """[N, G] of the rank's share."""
    if block is None:
        if scales.numel() == 1:
            return scales.reshape(1, 1).expand(part.width, 1)
        if scales.numel() != part.out_features:
            raise ConfigError(
                f"{part.name}: {list(scales.shape)} scales for {part.out_features} outputs are not supported: use one, "
                "one an output, or blocks"
            )
        return scales.reshape(-1, 1)[part.rows]
    own = math.gcd(block[1], part.columns.start, part.columns.stop)
    if own < min(LEAST_GROUP, block[1]):
        raise ConfigError(
            f"{part.name}: inputs {part.columns.start} to {part.columns.stop} of this rank cut blocks of {block[1]} "
            f"into pieces of {own}, at least {LEAST_GROUP} are needed: use another --tp-size"
        )
    rows = torch.arange(part.rows.start, part.rows.stop, device=scales.device) // block[0]
    columns = torch.arange(part.columns.start, part.columns.stop, own, device=scales.device) // block[1]
    return scales[rows][:, columns]

"""compressed-tensors: packed and plain INT4 and INT8, and 8-bit floats by tensor, channel or block.

Activations that a checkpoint wants in fewer bits stay as they are beside whole numbers. Source: the configuration and
compressors of compressed-tensors 0.20; the tensor `weight_g_idx` is of versions before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from services.worker.quantization.compressed_groups import CompressedGroups, ProductFormat
from services.worker.quantization.fp8 import fp8_stored
from services.worker.quantization.input_order import arrange
from services.worker.quantization.stored import Part, Shapes, Stored, cover, groups_of, unpack, usually_plain
from services.worker.quantization.weights import IntWeight, int_weight
from shared.checkpoint.target import ALL, Target, whole
from shared.errors import ConfigError

_PACKED = "pack-quantized"
_LAYOUTS = {
    "int": (_PACKED, "int-quantized", "naive-quantized"),
    "float": ("float-quantized", "naive-quantized"),
}  # fmt: skip
_STRATEGIES = {"int": ("channel", "group"), "float": ("tensor", "channel", "block")}
_WIDTHS = {"int": (4, 8), "float": (8,)}


class CompressedTensors:
    """The scheme `compressed-tensors`."""

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: no groups, sparse weights, or activations that are to be rotated.
        """
        sparse = (config.get("sparsity_config") or {}).get("format") or "dense"
        if sparse != "dense":
            raise ConfigError(f"compressed-tensors: sparse weights ({sparse}) are not supported: use dense ones")
        for transform in ((config.get("transform_config") or {}).get("config_groups") or {}).values():
            places = [str(place.get("location")) for place in transform.get("apply") or []]
            online = [place for place in places if not place.startswith("weight_")]
            if online:
                raise ConfigError(
                    f"compressed-tensors: a transform of {online[0]} (transform_config) is not supported: use a "
                    "checkpoint whose transforms are part of its weights"
                )
        self._groups = CompressedGroups(config)
        kinds = dict.fromkeys(f"{own.kind}{own.bits} {own.strategy}" for own in self._groups.formats)
        self.name = f"compressed-tensors {', '.join(kinds)}"

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        if shapes is None:
            if usually_plain(part.name) or self._groups.ignores(part.name) or self._groups.of(part.name) is None:
                return None
        elif not any(f"{part.name}.{name}" in shapes for name in ("weight_packed", "weight_scale")):
            return None
        own = self._groups.of(part.name)
        if own is None:
            raise ConfigError(f"{part.name}: quantized, but no target of config_groups means it")
        if not (
            own.layout in _LAYOUTS.get(own.kind, ())
            and own.bits in _WIDTHS[own.kind]
            and own.strategy in _STRATEGIES[own.kind]
        ):
            raise ConfigError(
                f"{part.name}: compressed-tensors {own} is not supported: use INT4 or INT8 by group or channel "
                "(pack-quantized, int-quantized), or FP8 by tensor, channel or block (float-quantized)"
            )
        if own.kind == "float":
            return fp8_stored(part, "weight_scale", own.block, shapes, device)
        return _int_stored(part, own, shapes, device)


def _int_stored(part: Part, own: ProductFormat, shapes: Shapes | None, device: torch.device) -> Stored:
    """Whole numbers, in words of 32 bits or one by one: codes along the inputs, zero points along the outputs."""
    bits, packed = own.bits, own.layout == _PACKED
    group = own.group or part.in_features
    num_groups = -(-part.in_features // group)
    per_word, number = (32 // bits, torch.int32) if packed else (1, torch.int8)
    inputs, outputs = cover(part.columns, per_word), cover(part.rows, per_word)
    codes = torch.empty((part.width, inputs.take.stop - inputs.take.start), dtype=number, device=device)
    scales = torch.empty((part.width, num_groups), dtype=torch.float32, device=device)
    codes_shape = part.out_features, -(-part.in_features // per_word)
    targets = {
        "weight_packed" if packed else "weight": Target(codes, codes_shape, (part.rows, inputs.take)),
        "weight_scale": Target(scales, (part.out_features, num_groups), (part.rows, ALL)),
    }

    def in_files(tensor: str) -> bool:
        return shapes is not None and f"{part.name}.{tensor}" in shapes

    if in_files("weight_shape"):
        targets["weight_shape"] = whole(torch.empty(2, dtype=torch.int64, device=device))
    zeros: Tensor | None = None
    if not own.symmetric and (shapes is None or in_files("weight_zero_point")):  # old tools left out those that are 0
        zeros = torch.empty((outputs.take.stop - outputs.take.start, num_groups), dtype=number, device=device)
        zeros_shape = -(-part.out_features // per_word), num_groups
        targets["weight_zero_point"] = Target(zeros, zeros_shape, (outputs.take, ALL))
    g_idx: Tensor | None = None
    if in_files("weight_g_idx"):
        g_idx = torch.empty(part.depth, dtype=torch.int32, device=device)
        targets["weight_g_idx"] = Target(g_idx, (part.in_features,), (part.columns,))
    else:
        groups_of(part, group)  # complains of a cut before anything is loaded

    def read() -> IntWeight:
        found = arrange(part, group, g_idx, "actorder")
        numbers = found.inputs(_from_zero(codes, bits)[:, inputs.keep])  # [N, K]
        points = None
        if zeros is not None:
            points = found.groups(_from_zero(zeros.T, bits)[:, outputs.keep].T.float())  # [N, G]
        return int_weight(bits, numbers, found.groups(scales), points, found.order)

    return Stored(targets, read)


def _from_zero(numbers: Tensor, bits: int) -> Tensor:
    """Numbers of a file, in words or one by one along the last dimension, as uint8 that count from 0."""
    if numbers.dtype == torch.int32:
        return unpack(numbers, bits)
    return (numbers.int() + 2 ** (bits - 1)).to(torch.uint8)

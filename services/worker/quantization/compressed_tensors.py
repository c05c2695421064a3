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
from services.worker.quantization.input_order import input_order
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
        own = self._groups.of(part.name)
        if shapes is None:
            if own is None or usually_plain(part.name) or self._groups.ignores(part.name):
                return None
        elif not any(f"{part.name}.{name}" in shapes for name in ("weight_packed", "weight_scale")):
            return None
        if own is None:
            raise ConfigError(f"{part.name}: quantized, but no target of config_groups means it")
        kind = own.kind
        if (
            own.layout not in _LAYOUTS.get(kind, ())
            or own.bits not in _WIDTHS[kind]
            or own.strategy not in _STRATEGIES[kind]
        ):
            raise ConfigError(
                f"{part.name}: compressed-tensors {own} is not supported: use INT4 or INT8 by group or channel "
                "(pack-quantized, int-quantized), or FP8 by tensor, channel or block (float-quantized)"
            )
        if kind == "float":
            return fp8_stored(part, "weight_scale", own.block, shapes, device)
        return _int_stored(part, own, shapes, device)


def _int_stored(part: Part, own: ProductFormat, shapes: Shapes | None, device: torch.device) -> Stored:
    """Whole numbers, in words of 32 bits or one by one: codes along the inputs, zero points along the outputs."""
    bits, packed = own.bits, own.layout == _PACKED
    group = own.group or part.in_features
    in_files = shapes or {}
    shuffled = f"{part.name}.weight_g_idx" in in_files
    num_groups = -(-part.in_features // group)
    take = slice(0, num_groups) if shuffled else groups_of(part, group).take
    scales = torch.empty((part.width, take.stop - take.start), dtype=torch.float32, device=device)
    targets = {"weight_scale": Target(scales, (part.out_features, num_groups), (part.rows, take))}
    per_word = 32 // bits if packed else 1
    number = torch.int32 if packed else torch.int8
    inputs, outputs = cover(part.columns, per_word), cover(part.rows, per_word)
    codes = torch.empty((part.width, inputs.take.stop - inputs.take.start), dtype=number, device=device)
    targets["weight_packed" if packed else "weight"] = Target(
        codes, (part.out_features, -(-part.in_features // per_word)), (part.rows, inputs.take)
    )
    if f"{part.name}.weight_shape" in in_files:
        targets["weight_shape"] = whole(torch.empty(2, dtype=torch.int64, device=device))
    zeros: Tensor | None = None
    # Old versions leave out zero points that are all zero.
    if not own.symmetric and (shapes is None or f"{part.name}.weight_zero_point" in shapes):
        zeros = torch.empty((outputs.take.stop - outputs.take.start, scales.shape[1]), dtype=number, device=device)
        full = -(-part.out_features // per_word), num_groups
        targets["weight_zero_point"] = Target(zeros, full, (outputs.take, take))
    g_idx: Tensor | None = None
    if shuffled:
        g_idx = torch.empty(part.depth, dtype=torch.int32, device=device)
        targets["weight_g_idx"] = Target(g_idx, (part.in_features,), (part.columns,))

    def read() -> IntWeight:
        numbers = _from_zero(codes, bits)[:, inputs.keep]  # [N, K]
        points = None if zeros is None else _from_zero(zeros.T, bits)[:, outputs.keep].T.float()  # [N, groups]
        if g_idx is not None and (found := input_order(part, g_idx, group, "actorder")) is not None:
            sorted_points = None if points is None else points[:, found.groups]
            return int_weight(bits, numbers[:, found.order], scales[:, found.groups], sorted_points, found.order)
        groups = groups_of(part, group)
        mine = groups.take if shuffled else ALL
        own_points = None if points is None else groups.of(points[:, mine])
        return int_weight(bits, numbers, groups.of(scales[:, mine]), own_points)

    return Stored(targets, read)


def _from_zero(numbers: Tensor, bits: int) -> Tensor:
    """Numbers of a file, in words or one by one along the last dimension, as uint8 that count from 0."""
    if numbers.dtype == torch.int32:
        return unpack(numbers, bits)
    return (numbers + 2 ** (bits - 1)).view(torch.uint8) if bits == 4 else numbers.contiguous().view(torch.uint8) ^ 128

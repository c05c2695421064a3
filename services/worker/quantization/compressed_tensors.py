"""compressed-tensors: packed INT4 and INT8, plain INT8, and 8-bit floats by tensor, channel or block.

Activations that a checkpoint wants in 8 bits stay as they are beside whole numbers. Source: the configuration and
compressors of compressed-tensors 0.20.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from services.worker.quantization.fp8 import fp8_stored
from services.worker.quantization.stored import Part, Shapes, Stored, cover, groups_of, unpack, usually_plain
from services.worker.quantization.weights import IntWeight
from shared.checkpoint.target import Target, whole
from shared.errors import ConfigError

_STRATEGIES = ("tensor", "channel", "group", "block")


class CompressedTensors:
    """The scheme `compressed-tensors`."""

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: no groups, or a scheme of keys and values.
        """
        self._groups: list[dict[str, Any]] = list((config.get("config_groups") or {}).values())
        self._format = str(config.get("format", ""))
        if not self._groups:
            raise ConfigError("compressed-tensors: config.json has no config_groups")
        if config.get("kv_cache_scheme"):
            raise ConfigError("compressed-tensors: kv_cache_scheme is not supported: use --kv-cache-dtype fp8_e4m3")
        first = self._groups[0].get("weights") or {}
        self.name = f"compressed-tensors {first.get('type')}{first.get('num_bits')} {first.get('strategy')}"

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        if shapes is None:
            if usually_plain(part.name):
                return None
        elif not any(f"{part.name}.{name}" in shapes for name in ("weight_packed", "weight_scale")):
            return None
        group = self._group_of(part.name)
        weights = group.get("weights") or {}
        kind, bits, strategy = str(weights.get("type")), int(weights.get("num_bits") or 0), weights.get("strategy")
        layout = group.get("format") or self._format
        known = layout in {"int": ("pack-quantized", "int-quantized"), "float": ("float-quantized",)}.get(kind, ())
        if not known or (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)) or strategy not in _STRATEGIES:
            raise ConfigError(
                f"{part.name}: compressed-tensors {kind}{bits} by {strategy} as {layout!r} is not supported: use INT4, "
                "INT8 (pack-quantized, int-quantized) or FP8 (float-quantized)"
            )
        if kind == "float":
            block = weights.get("block_structure") if strategy == "block" else None
            return fp8_stored(part, "weight_scale", tuple(block) if block else None, shapes, device)
        return _int_stored(part, bits, layout == "pack-quantized", weights, shapes, device)

    def _group_of(self, name: str) -> dict[str, Any]:
        """The first group with a target that means this product.

        Raises:
            ConfigError: there is none.
        """
        for group in self._groups:
            if any(_means(target, name) for target in group.get("targets") or ["Linear"]):
                return group
        raise ConfigError(f"{name}: quantized, but no target of config_groups means it")


def _means(target: str, name: str) -> bool:
    if target.startswith("re:"):
        return any(re.match(target[3:], spelling) for spelling in (name, f"model.{name}"))
    return target == "Linear" or target.removeprefix("model.") == name


def _int_stored(
    part: Part, bits: int, packed: bool, weights: dict[str, Any], shapes: Shapes | None, device: torch.device
) -> Stored:
    """Whole numbers: in words of 32 bits along the inputs, or one by one."""
    by_group, symmetric = weights["strategy"] == "group", bool(weights.get("symmetric", True))
    if bits == 8 and not symmetric:
        raise ConfigError(f"{part.name}: compressed-tensors INT8 with zero points is not supported")
    if weights["strategy"] not in ("group", "channel") or (bits == 4 and not packed):
        raise ConfigError(f"{part.name}: compressed-tensors INT{bits} by {weights['strategy']} is not supported")
    if shapes is not None and f"{part.name}.weight_g_idx" in shapes:
        raise ConfigError(f"{part.name}: compressed-tensors with inputs in another order (actorder) is not supported")
    group = int(weights["group_size"]) if by_group else part.in_features
    groups, num_groups = groups_of(part, group), -(-part.in_features // group)
    taken = groups.take.stop - groups.take.start
    scales = torch.empty((part.width, taken), dtype=torch.float32, device=device)
    targets = {"weight_scale": Target(scales, (part.out_features, num_groups), (part.rows, groups.take))}
    per_word = 32 // bits
    inputs, outputs = cover(part.columns, per_word), cover(part.rows, per_word)
    if packed:
        words = torch.empty((part.width, inputs.take.stop - inputs.take.start), dtype=torch.int32, device=device)
        targets["weight_packed"] = Target(
            words, (part.out_features, -(-part.in_features // per_word)), (part.rows, inputs.take)
        )
        if shapes is not None:
            targets["weight_shape"] = whole(torch.empty(2, dtype=torch.int64, device=device))
    else:
        words = torch.empty((part.width, part.depth), dtype=torch.int8, device=device)
        targets["weight"] = Target(words, (part.out_features, part.in_features), (part.rows, part.columns))
    zeros: Tensor | None = None
    if not symmetric:
        count = outputs.take.stop - outputs.take.start
        zeros = torch.empty((count, taken), dtype=torch.int32, device=device)
        full = -(-part.out_features // per_word), num_groups
        targets["weight_zero_point"] = Target(zeros, full, (outputs.take, groups.take))

    def read() -> IntWeight:
        own = groups.of(scales).contiguous()
        if bits == 8:
            codes = (unpack(words, 8)[:, inputs.keep].int() - 128).to(torch.int8) if packed else words
            return IntWeight(8, codes.contiguous(), own, None)
        codes = unpack(words, 4)[:, inputs.keep].contiguous()
        if zeros is None:
            return IntWeight(4, codes, own, own * -8.0)
        points = unpack(zeros.T, 4)[:, outputs.keep].T.float()  # [N, groups]
        return IntWeight(4, codes, own, groups.of(points) * -own)

    return Stored(targets, read)

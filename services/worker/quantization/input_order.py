"""Inputs whose groups are not neighbours: GPTQ's `desc_act` and compressed-tensors' `actorder`.

A tensor gives the group of each input. Sorted by it, groups are neighbours again, and the weight keeps the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.worker.quantization.stored import Part
from shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class InputOrder:
    """How to sort inputs by their groups."""

    order: Tensor
    """[K] int64, as in `IntWeight`"""
    groups: Tensor
    """[G] int64: which of the checkpoint's groups comes first, second, ..."""


def input_order(part: Part, g_idx: Tensor, group: int, setting: str) -> InputOrder | None:
    """None: groups are neighbours already.

    Args:
        g_idx: [K] int32, the group of each of the part's inputs; negative numbers = not filled in.
        group: inputs that share a scale.
        setting: what to call this in errors.

    Raises:
        ConfigError: groups of unequal size, or the part of one rank, whose groups would be of unequal size.
    """
    inputs = torch.arange(part.columns.start, part.columns.stop, dtype=torch.int32, device=g_idx.device)
    if torch.equal(g_idx, inputs // group) or bool((g_idx < 0).any()):
        return None
    if part.depth < part.in_features:
        raise ConfigError(
            f"{part.name}: inputs in another order ({setting}) cannot be shared among ranks: use --tp-size 1 or a "
            f"checkpoint without {setting}"
        )
    groups, counts = torch.unique(g_idx, return_counts=True)
    if not bool((counts == group).all()):
        raise ConfigError(
            f"{part.name}: {setting} puts {counts.tolist()[:8]} inputs into groups of {group}: broken file?"
        )
    return InputOrder(g_idx.argsort(stable=True), groups.long())

"""The inputs of a product in an order in which those that share a scale are neighbours.

They are from the start, but after GPTQ's `desc_act` and compressed-tensors' `actorder`: there a tensor gives the group
of each input, and the weight keeps the order that sorts them. Called by these formats, once a product is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.worker.quantization.stored import Part, groups_of
from shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How the rank's inputs are ordered, and which of the checkpoint's groups they are in."""

    order: Tensor | None
    """[K] int64, as in `IntWeight`"""
    index: Tensor
    """[G] int64: of each of the rank's groups, the checkpoint's that it is, or is cut from"""

    def inputs(self, codes: Tensor) -> Tensor:
        """Columns [N, K] in this order."""
        return codes if self.order is None else codes.index_select(1, self.order)

    def groups(self, values: Tensor) -> Tensor:
        """Columns of all the checkpoint's groups, for the rank's own: [N, G]"""
        return values.index_select(1, self.index.to(values.device))


def arrange(part: Part, group: int, g_idx: Tensor | None, setting: str) -> Arrangement:
    """How a part's inputs are to be ordered.

    Args:
        group: inputs that share a scale.
        g_idx: [K] int32, the group of each of the part's inputs, negative where a tool did not fill it in; None = in
            order.
        setting: what brings them into another order, for errors.

    Raises:
        ConfigError: groups of unequal size, or the part of one rank, whose groups would be of unequal size.
    """
    if g_idx is None or _in_order(part, group, g_idx):
        groups = groups_of(part, group)
        return Arrangement(None, torch.tensor([groups.take.start + own for own in groups.index]))
    if part.depth < part.in_features:
        raise ConfigError(
            f"{part.name}: inputs in another order ({setting}) cannot be shared among ranks: use --tp-size 1 or a "
            f"checkpoint without {setting}"
        )
    members, counts = torch.unique(g_idx, return_counts=True)
    if not bool((counts == group).all()):
        raise ConfigError(
            f"{part.name}: {setting} puts {counts.tolist()[:8]} inputs into groups of {group}: broken file?"
        )
    return Arrangement(g_idx.argsort(stable=True), members.long())


def _in_order(part: Part, group: int, g_idx: Tensor) -> bool:
    inputs = torch.arange(part.columns.start, part.columns.stop, dtype=torch.int32, device=g_idx.device)
    return torch.equal(g_idx, inputs // group) or bool((g_idx < 0).any())

"""A product as a checkpoint stores it, and the arithmetic of cutting a rank's share out of packed tensors.

Every format makes `Stored` of a `Part`; the loader fills the targets, then `read` gives the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.worker.quantization.weights import Weight
from shared.checkpoint.target import Target
from shared.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors in the checkpoint's files, by canonical name."""
LEAST_GROUP = 16
"""Inputs that a kernel takes at once."""


@dataclass(frozen=True, slots=True)
class Part:
    """A product of the checkpoint, and what of it this rank holds."""

    name: str
    """Canonical name without ".weight"."""
    rows: slice
    """Output features, start and stop given."""
    out_features: int
    columns: slice
    """Input features, start and stop given."""
    in_features: int

    @property
    def width(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def depth(self) -> int:
        return int(self.columns.stop - self.columns.start)


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of a part, by the last part of their names, and how to read them once they are loaded."""

    targets: dict[str, Target]
    read: Callable[[], Weight]


class Scheme(Protocol):
    """How a checkpoint's products are stored. Immutable; lives while a model is built."""

    @property
    def name(self) -> str:
        """For the log and for errors: format and bits."""

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        """None: this product has a plain weight.

        Args:
            shapes: None when weights are made up; then it is assumed that what usually is quantized is.

        Raises:
            ConfigError: the product is stored in a way that is not supported, or its share cannot be cut out.
        """


def usually_plain(name: str) -> bool:
    """Products that makers of checkpoints leave as they are: embeddings, the head, routers and gates of experts."""
    return name.rsplit(".", 1)[-1] in ("lm_head", "embed_tokens", "gate", "shared_expert_gate")


@dataclass(frozen=True, slots=True)
class Cover:
    """Whole units of packed features that hold a slice of them."""

    take: slice
    """Units."""
    keep: slice
    """The wanted features among those of the units."""


def cover(features: slice, unit: int) -> Cover:
    """Of `unit` features packed into one element."""
    first, last = features.start // unit, -(-features.stop // unit)
    return Cover(slice(first, last), slice(features.start - first * unit, features.stop - first * unit))


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups that a rank's inputs fall into. A cut inside a group leaves smaller groups, which divide all."""

    take: slice
    """Of the checkpoint's groups."""
    index: list[int]
    """Of each of the rank's own groups: which of the taken ones it is in."""

    def of(self, values: Tensor) -> Tensor:
        """Columns of the taken groups [N, taken] for the rank's own groups."""
        if self.index == list(range(values.shape[1])):
            return values
        return values.index_select(1, torch.tensor(self.index, device=values.device))


def groups_of(part: Part, group: int) -> Groups:
    """The groups of `group` inputs (the last may be shorter) in a part's columns.

    Raises:
        ConfigError: what a cut leaves of a group is too small to compute with.
    """
    start, stop = part.columns.start, part.columns.stop
    if group >= part.in_features:
        return Groups(slice(0, 1), [0])
    own = math.gcd(group, start, stop)
    if own < min(LEAST_GROUP, group):
        raise ConfigError(
            f"{part.name}: inputs {start} to {stop} of this rank cut groups of {group} into pieces of {own}, at least "
            f"{LEAST_GROUP} are needed: use another --tp-size"
        )
    first = start // group
    index = [at // group - first for at in range(start, stop, own)]
    return Groups(slice(first, index[-1] + first + 1), index)


def unpack(words: Tensor, bits: int) -> Tensor:
    """Codes [..., W * 32 / bits] uint8 of int32 words [..., W], lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & (2**bits - 1)).to(torch.uint8).flatten(-2)

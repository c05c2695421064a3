"""Where a checkpoint's tensor goes: the contract between model files and the loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

ALL = slice(None)
WriteRows = Callable[[Tensor, slice], None]
"""Takes values [rows, ...] on the device of what they are for, and the rows of it; several threads call it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the checkpoint: its full shape there, the part this rank takes, the memory it goes to.

    `into` is a view of a (possibly fused) parameter with the shape of the part.
    """

    into: Tensor
    shape: tuple[int, ...]
    take: tuple[slice, ...]
    is_norm: bool = False
    """Factors around one: what random weights should be, too."""
    write: WriteRows | None = None
    """Where `into` does not hold the values as they are: what to do with some of its rows' instead of copying them."""


def whole(into: Tensor, *, is_norm: bool = False) -> Target:
    """A tensor that every rank holds."""
    return Target(into, tuple(into.shape), (ALL,) * into.dim(), is_norm)


def under(prefix: str, targets: dict[str, Target]) -> dict[str, Target]:
    """The targets of a part, named as the whole knows them."""
    return {f"{prefix}.{name}": target for name, target in targets.items()}

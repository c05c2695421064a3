"""Where each checkpoint tensor goes: the contract between model files and the loader."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from services.worker.models.linear import Linear

ALL = slice(None)


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


def whole(into: Tensor, *, is_norm: bool = False) -> Target:
    """A tensor that every rank holds."""
    return Target(into, tuple(into.shape), (ALL,) * into.dim(), is_norm)


def column_targets(name: str, linear: Linear, at: int, take: slice, full: int) -> dict[str, Target]:
    """Output features `take` of `full` go to the rows from `at` on of a (possibly fused) column-parallel weight."""
    rows = slice(at, at + take.stop - take.start)
    out = {f"{name}.weight": Target(linear.weight[rows], (full, linear.weight.shape[1]), (take, ALL))}
    if linear.bias is not None:
        out[f"{name}.bias"] = Target(linear.bias[rows], (full,), (take,))
    return out


def row_targets(name: str, linear: Linear, take: slice, full: int) -> dict[str, Target]:
    """Input features `take` of `full` of a row-parallel weight; its bias is whole, to be added by one rank."""
    out = {f"{name}.weight": Target(linear.weight, (linear.weight.shape[0], full), (ALL, take))}
    if linear.bias is not None:
        out[f"{name}.bias"] = whole(linear.bias)
    return out


def under(prefix: str, targets: dict[str, Target]) -> dict[str, Target]:
    """The targets of a part, named as the whole knows them."""
    return {f"{prefix}.{name}": target for name, target in targets.items()}

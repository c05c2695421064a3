"""Targets of the checkpoint's tensors in this rank's share of a product."""

from __future__ import annotations

from services.worker.models.linear import Linear
from shared.checkpoint.target import ALL, Target, whole


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

"""Products, norms and activations of encoders, and where their weights come from.

Weights are made empty by a `Place` and filled through the targets of the part they are in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.checkpoint.target import Target, whole
from shared.errors import ConfigError

Activation = Callable[[Tensor], Tensor]


class Linear:
    """x [..., in] -> [..., out]"""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def targets(self) -> dict[str, Target]:
        return {"weight": whole(self.weight)} | ({} if self.bias is None else {"bias": whole(self.bias)})


class LayerNorm:
    """Over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def targets(self) -> dict[str, Target]:
        return {"weight": whole(self.weight, is_norm=True), "bias": whole(self.bias)}


class RmsNorm:
    """Over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def targets(self) -> dict[str, Target]:
        return {"weight": whole(self.weight, is_norm=True)}


Norm = LayerNorm | RmsNorm


@dataclass(frozen=True, slots=True)
class Place:
    """Where weights are made."""

    dtype: torch.dtype
    device: torch.device

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> Linear:
        return Linear(self.empty(outputs, inputs), self.empty(outputs) if bias else None)

    def layer_norm(self, width: int, eps: float) -> LayerNorm:
        return LayerNorm(self.empty(width), self.empty(width), eps)

    def rms_norm(self, width: int, eps: float) -> RmsNorm:
        return RmsNorm(self.empty(width), eps)


def activation(name: str) -> Activation:
    """The activation that config.json calls `name`.

    Raises:
        ConfigError: it is not known here.
    """
    if name not in _ACTIVATIONS:
        raise ConfigError(f"config.json: activation {name!r} is not supported, only {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _quick_gelu(x: Tensor) -> Tensor:
    """May change x, which nobody else has."""
    if x.is_cuda:
        from services.vision.kernels.quick_gelu import quick_gelu_

        return quick_gelu_(x)
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": _quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}

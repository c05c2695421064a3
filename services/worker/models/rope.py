"""Rotary position embedding and the ways of stretching it: linear, dynamic, llama3, yarn.

What a step's layers share is a `Rotation`. Attention backends turn q and k: those of PyTorch operators with cosines and
sines of the step's positions, kernels with a table of all positions.
Sources: RoFormer (Su et al. 2021), YaRN (Peng et al. 2023), the Llama 3.1 model card.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import ConfigError
from shared.model_config import RopeScaling

QkNorm = tuple[Tensor, Tensor, float]
"""Weights [D] of q's and of k's norm per head, and their epsilon."""


class Rotary:
    """Frequencies of one model. Immutable."""

    def __init__(
        self, rope: RopeScaling, head_dim: int, context_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        inv_freq, self.scale = frequencies(rope, head_dim)
        self._inv_freq = inv_freq.to(device)  # [D/2] fp32
        self._axes = position_axes(rope, head_dim).to(device)  # [D/2]
        self._context_length, self._dtype = context_length, dtype

    @functools.cached_property
    def table(self) -> Tensor:
        """[context_length, D] fp32: cosines of the D/2 frequencies, then sines. Made when first asked for."""
        angle = torch.arange(self._context_length, device=self._inv_freq.device).unsqueeze(1) * self._inv_freq
        return torch.cat((angle.cos(), angle.sin()), dim=1).mul_(self.scale)

    def step_table(self, positions: Tensor) -> Tensor:
        """`table` with a line per token of a step, for `positions` [3, T]."""
        angle = self._turns(positions)
        return torch.cat((angle.cos(), angle.sin()), dim=1).mul_(self.scale)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin, [T, 1, D], for `positions` [T] or [3, T]."""
        angle = self._turns(positions)
        cos, sin = angle.cos() * self.scale, angle.sin() * self.scale
        return (
            torch.cat((cos, cos), dim=1).unsqueeze(1).to(self._dtype),
            torch.cat((-sin, sin), dim=1).unsqueeze(1).to(self._dtype),
        )

    def _turns(self, positions: Tensor) -> Tensor:
        """[T, D/2] fp32"""
        if positions.dim() == 1:
            return positions.float().unsqueeze(1) * self._inv_freq
        return positions.float()[self._axes].T * self._inv_freq


class Rotation:
    """The rotary embedding of one step's tokens."""

    def __init__(self, rotary: Rotary, positions: Tensor) -> None:
        """positions: [T] int64, or [3, T] of time, height and width"""
        self._given = positions
        self._rotary = rotary

    @functools.cached_property
    def positions(self) -> Tensor:
        """[T] lines of `table`."""
        if self._given.dim() == 1:
            return self._given
        return torch.arange(self._given.shape[1], device=self._given.device)

    @functools.cached_property
    def table(self) -> Tensor:
        """Cosines and sines as in `Rotary.table`: its lines, or the step's own."""
        return self._rotary.table if self._given.dim() == 1 else self._rotary.step_table(self._given)

    @functools.cached_property
    def angles(self) -> tuple[Tensor, Tensor]:
        """As `Rotary.angles`, computed once for all layers."""
        return self._rotary.angles(self._given)


def turn_(heads: Tensor, num_q_heads: int, rotation: Rotation, qk_norm: QkNorm | None) -> None:
    """Norm (if asked) and rotate heads [T, H + G, D] in place: queries first, then keys."""
    if qk_norm is not None:
        *weights, eps = qk_norm
        for part, weight in zip((heads[:, :num_q_heads], heads[:, num_q_heads:]), weights, strict=True):
            part.copy_(F.rms_norm(part, weight.shape, weight, eps))
    rotate_(heads, *rotation.angles)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate heads in place. x: [T, heads, D]; the two halves of D are the two coordinates."""
    swapped = torch.roll(x, x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(swapped, sin)


def position_axes(rope: RopeScaling, head_dim: int) -> Tensor:
    """[D/2] int64: which of a position's three dimensions (0 time, 1 height, 2 width) turns each frequency.

    Sections follow each other in Qwen2-VL and alternate in Qwen3-VL, where time also has what is left.

    Raises:
        ConfigError: the sections do not add up.
    """
    half, sections = head_dim // 2, rope.params.get("mrope_section")
    axes = torch.zeros(half, dtype=torch.int64)
    if sections is None:
        return axes
    if len(sections) != 3 or sum(sections) != half:
        raise ConfigError(f"mrope_section {sections} in config.json: want three numbers whose sum is {half}")
    if rope.params.get("mrope_interleaved"):
        for axis in (1, 2):
            axes[axis : 3 * sections[axis] : 3] = axis
        return axes
    return torch.repeat_interleave(torch.arange(3), torch.tensor(sections))


def frequencies(rope: RopeScaling, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies [D/2] fp32 and the factor on cos and sin.

    "dynamic" only differs from the default beyond the model's own context length, which is never exceeded.

    Raises:
        ConfigError: a kind of scaling that is not known, or a parameter of it is missing.
    """
    base = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    try:
        match rope.kind:
            case "default" | "dynamic" | "mrope":
                return base, 1.0
            case "linear":
                return base / float(rope.params["factor"]), 1.0
            case "llama3":
                return _llama3(base, rope.params), 1.0
            case "yarn":
                return _yarn(base, rope.theta, head_dim, rope.params)
    except KeyError as fault:
        raise ConfigError(f"rope scaling {rope.kind!r} in config.json lacks {fault.args[0]!r}") from fault
    raise ConfigError(f"rope scaling {rope.kind!r} is not supported: use default, linear, dynamic, llama3 or yarn")


def _llama3(base: Tensor, p: dict[str, Any]) -> Tensor:
    """Long waves are stretched, short ones kept, those between are blended."""
    context = float(p["original_max_position_embeddings"])
    low, high, factor = float(p["low_freq_factor"]), float(p["high_freq_factor"]), float(p["factor"])
    turns = context / (2 * math.pi / base)
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * base / factor + blend * base


def _yarn(base: Tensor, theta: float, dim: int, p: dict[str, Any]) -> tuple[Tensor, float]:
    context, factor = p["original_max_position_embeddings"], float(p["factor"])

    def dim_of(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_of(p.get("beta_fast") or 32), dim_of(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)
    return base / factor * ramp + base * (1 - ramp), _yarn_attention_factor(factor, p)


def _yarn_attention_factor(factor: float, p: dict[str, Any]) -> float:
    def mscale(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])
    if p.get("mscale") and p.get("mscale_all_dim"):
        return mscale(p["mscale"]) / mscale(p["mscale_all_dim"])
    return mscale()

"""Natural logarithms of probabilities under the model's raw distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = -9999.0
"""Stands for minus infinity and NaN, which JSON cannot carry."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of N tokens."""

    chosen: Tensor
    """[N] fp32"""
    top_ids: Tensor
    """[N, B] int64, most likely first"""
    top: Tensor
    """[N, B] fp32"""


def logprobs_of(logits: Tensor, tokens: Tensor, top_n: int) -> Logprobs:
    """For raw logits [N, V] and tokens [N]: the tokens' logprobs and those of the `top_n` most likely."""
    norm = logits.logsumexp(-1, keepdim=True)
    chosen = (logits.gather(1, tokens.unsqueeze(1)) - norm).squeeze(1)
    values, ids = logits.topk(min(top_n, logits.shape[1]))
    return Logprobs(_finite(chosen), ids, _finite(values - norm))


def join(parts: list[Logprobs]) -> Logprobs:
    """Parts of one sequence, in order; at least one."""
    return Logprobs(*(torch.cat([getattr(p, name) for p in parts]) for name in ("chosen", "top_ids", "top")))


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num_(nan=LEAST, neginf=LEAST).clamp_(min=LEAST)

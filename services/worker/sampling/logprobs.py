"""Natural logarithms of probabilities under the model's raw distribution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from services.worker.download import download
from services.worker.rows import I64
from shared.messages.step import F32, I32

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

    def fetch(self) -> Logprobs:
        """On the host, after the step (`download.py`)."""
        return Logprobs(download(self.chosen), download(self.top_ids), download(self.top))


@dataclass(frozen=True, slots=True)
class Asked:
    """Log probabilities of the rows of a step that asked for them."""

    index: I64
    """[N] which of the step's S tokens"""
    wanted: I64
    """[N] top logprobs of each"""
    found: Logprobs

    def fetch(self) -> Asked:
        """On the host, after the step."""
        return replace(self, found=self.found.fetch())

    def arrays(self, count: int) -> tuple[F32, I32 | None, F32 | None]:
        """logprobs, top_ids and top_logprobs of a `StepResult` with `count` tokens: 0 for rows that did not ask."""
        logprobs = np.zeros(count, np.float32)
        logprobs[self.index] = self.found.chosen.numpy()
        if not self.wanted.any():
            return logprobs, None, None
        top_ids = np.full((count, self.found.top.shape[1]), -1, np.int32)
        top = np.zeros(top_ids.shape, np.float32)
        top_ids[self.index], top[self.index] = cut_to(self.wanted, self.found.top_ids, self.found.top)
        return logprobs, top_ids, top


def cut_to(wanted: I64, ids: Tensor, values: Tensor) -> tuple[I32, F32]:
    """Keep the first wanted[n] of each row of `ids` and `values` [N, B]; the rest becomes -1 and 0."""
    beyond = np.arange(ids.shape[1]) >= wanted[:, None]
    return (
        np.where(beyond, -1, ids.numpy()).astype(np.int32),
        np.where(beyond, 0.0, values.numpy()).astype(np.float32),
    )


def logprobs_of(logits: Tensor, tokens: Tensor, top_n: int) -> Logprobs:
    """For raw logits [N, V] and tokens [N]: the tokens' logprobs and those of the `top_n` most likely."""
    logits = logits.float()
    norm = logits.logsumexp(-1, keepdim=True)
    chosen = (logits.gather(1, tokens.unsqueeze(1)) - norm).squeeze(1)
    values, ids = logits.topk(min(top_n, logits.shape[1]))
    return Logprobs(finite(chosen), ids, finite(values - norm))


def join(parts: list[Logprobs]) -> Logprobs:
    """Parts of one sequence, in order; at least one."""
    return Logprobs(*(torch.cat([getattr(p, name) for p in parts]) for name in ("chosen", "top_ids", "top")))


def finite(values: Tensor) -> Tensor:
    """As JSON can carry them; in place."""
    return values.nan_to_num_(nan=LEAST, neginf=LEAST).clamp_(min=LEAST)

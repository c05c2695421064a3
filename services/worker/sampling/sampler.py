"""[walk 10] Logits to tokens and log probabilities, for the rows of one step: the seam, and the sampler of operators.

`TorchSampler` runs on any device and decides on the host which operators a batch needs, so it may wait for the device;
`fused.py` has the one that never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from services.worker.rows import I64
from services.worker.sampling.draw import draw, greedy
from services.worker.sampling.logprobs import Asked, logprobs_of
from services.worker.sampling.masks import MaskUpdate
from services.worker.sampling.random import uniforms
from services.worker.sampling.rows import SamplingRows, Uses
from services.worker.upload import upload
from shared.messages.step import RowInit

_ADJUSTS = Uses.PENALTY | Uses.BIAS | Uses.MIN_NEW | Uses.MASK


@dataclass(frozen=True, slots=True)
class Sampled:
    """Of one step, on the device."""

    tokens: Tensor
    """[S] int64"""
    asked: Asked | None = None
    """Present when a row asked for log probabilities."""


class Sampler(Protocol):
    """Samples one token per row and advances the rows' state. On rank 0 only."""

    def init(self, inits: list[RowInit]) -> None:
        """Give rows to requests."""

    def top_logprobs(self, rows: I64) -> I64:
        """[N] how many top logprobs each row wants."""

    def set_masks(self, update: MaskUpdate) -> None:
        """What rows may sample from the next step on, until it is said again."""

    def count_forced(self, rows: I64, counts: I64, tokens: I64) -> None:
        """Tokens that rows [N] got without sampling: `counts` [N] of each, one after the other in `tokens`."""

    def sample(self, logits: Tensor, rows: I64, at: Tensor) -> Sampled:
        """Tokens from logits [S, V] (may be changed) for `rows` [S], which are `at` [S] int64 on the device."""


class TorchSampler:
    """PyTorch operators, any device."""

    def __init__(self, state: SamplingRows) -> None:
        self.state = state

    def init(self, inits: list[RowInit]) -> None:
        self.state.init(inits)

    def top_logprobs(self, rows: I64) -> I64:
        return self.state.top_logprobs[rows]

    def set_masks(self, update: MaskUpdate) -> None:
        self.state.set_masks(update)

    def count_forced(self, rows: I64, counts: I64, tokens: I64) -> None:
        self.state.count_forced(rows, counts, tokens)

    def sample(self, logits: Tensor, rows: I64, at: Tensor) -> Sampled:
        uses = self.state.uses(rows)
        union = int(np.bitwise_or.reduce(uses))
        raw = logits = logits.float()
        if union & _ADJUSTS:
            logits = raw.clone() if union & Uses.LOGPROB else raw
            self.state.adjust_(logits, rows, uses)
        tokens = greedy(logits)
        if union & Uses.RANDOM:
            index = np.flatnonzero(uses & Uses.RANDOM)
            where = upload(index, logits.device)
            u = uniforms(*self.state.stream(rows[index]))
            chosen = logits if len(index) == len(rows) else logits.index_select(0, where)
            tokens[where] = draw(chosen, self.state.filters(rows[index]), u)
        self.state.advance(rows, uses, tokens)
        if not union & Uses.LOGPROB:
            return Sampled(tokens)
        index = np.flatnonzero(uses & Uses.LOGPROB)
        where, wanted = upload(index, raw.device), self.state.top_logprobs[rows[index]]
        found = logprobs_of(raw.index_select(0, where), tokens[where], int(wanted.max()))
        return Sampled(tokens, Asked(index, wanted, found))


def make_sampler(
    backend: str, max_rows: int, mask_slots: int, vocab_size: int, device: torch.device, random_seed: int | None
) -> Sampler:
    """The sampler that goes with an attention backend."""
    if backend in ("torch", "numba"):
        return TorchSampler(SamplingRows(max_rows, vocab_size, device, random_seed, mask_slots))
    from services.worker.sampling.fused import FusedSampler

    return FusedSampler(max_rows, vocab_size, device, random_seed, mask_slots)

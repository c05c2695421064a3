"""[walk 10] Logits to tokens and log probabilities, for the rows of one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from services.worker.rows import I64
from services.worker.sampling.draw import draw, greedy
from services.worker.sampling.logprobs import logprobs_of
from services.worker.sampling.random import uniforms
from services.worker.sampling.rows import SamplingRows, Uses
from services.worker.upload import upload
from shared.messages.step import F32, I32

_ADJUSTS = Uses.PENALTY | Uses.BIAS | Uses.MIN_NEW


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens [S] on the device; log probabilities on the host, present when a row asked for them."""

    tokens: Tensor
    logprobs: F32 | None = None
    """[S], 0 for rows that did not ask"""
    top_ids: I32 | None = None
    """[S, B] padded with -1"""
    top_logprobs: F32 | None = None


class Sampler:
    """Samples one token per row and advances the rows' state."""

    def __init__(self, state: SamplingRows) -> None:
        self.state = state

    def sample(self, logits: Tensor, rows: I64) -> Sampled:
        """Logits [S, V] fp32 (may be changed) of `rows` [S] to tokens."""
        uses = self.state.uses(rows)
        union = int(np.bitwise_or.reduce(uses))
        raw = logits
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
        if union & Uses.LOGPROB:
            return self._with_logprobs(raw, rows, uses, tokens)
        return Sampled(tokens)

    def _with_logprobs(self, raw: Tensor, rows: I64, uses: I64, tokens: Tensor) -> Sampled:
        index = np.flatnonzero(uses & Uses.LOGPROB)
        where = upload(index, raw.device)
        wanted = self.state.top_logprobs[rows[index]]
        found = logprobs_of(raw.index_select(0, where), tokens[where], int(wanted.max()))
        logprobs = np.zeros(len(rows), np.float32)
        logprobs[index] = found.chosen.cpu().numpy()
        if not wanted.any():
            return Sampled(tokens, logprobs)
        top_ids = np.full((len(rows), found.top.shape[1]), -1, np.int32)
        top = np.zeros(top_ids.shape, np.float32)
        top_ids[index], top[index] = cut_to(wanted, found.top_ids, found.top)
        return Sampled(tokens, logprobs, top_ids, top)


def cut_to(wanted: I64, ids: Tensor, values: Tensor) -> tuple[I32, F32]:
    """Keep the first wanted[n] of each row of `ids` and `values` [N, B]; the rest becomes -1 and 0."""
    beyond = np.arange(ids.shape[1]) >= wanted[:, None]
    return (
        np.where(beyond, -1, ids.cpu().numpy()).astype(np.int32),
        np.where(beyond, 0.0, values.cpu().numpy()).astype(np.float32),
    )

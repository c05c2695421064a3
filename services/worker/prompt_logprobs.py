"""Log probabilities of prompt tokens, from the hidden states of the chunk that predicts them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from services.worker.models.registry import Model
from services.worker.plan_check import Work
from services.worker.rows import I64, ragged_arange
from services.worker.sampling.logprobs import Logprobs, cut_to, join, logprobs_of
from services.worker.upload import upload
from shared.messages.step import F32, I32

SLICE_TOKENS = 64
"""Logits held at once: this many times the vocabulary."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Of the extend rows of one step."""

    counts: I64
    """[E]"""
    wanted: I64
    """[N] top logprobs of each prediction"""
    found: Logprobs | None
    """None: the step predicts no token that was asked for."""

    def fetch(self) -> PromptLogprobs:
        """On the host, after the step."""
        return self if self.found is None else replace(self, found=self.found.fetch())

    def arrays(self) -> tuple[I32, F32, I32 | None, F32 | None]:
        """prompt_counts, prompt_logprobs, prompt_top_ids and prompt_top_logprobs of a `StepResult`."""
        counts, found = self.counts.astype(np.int32), self.found
        if found is None:
            return counts, np.zeros(0, np.float32), None, None
        top = cut_to(self.wanted, found.top_ids, found.top) if self.wanted.any() else (None, None)
        return counts, found.chosen.numpy(), *top


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Predictions to look at: the token whose hidden state predicts, and the token predicted."""

    counts: I64
    """[E]"""
    at: I64
    """[N] index among the step's tokens"""
    targets: I64
    """[N] token ids"""


def prompt_logprobs(work: Work, hidden: Tensor, model: Model, top_wanted: I64 | None) -> PromptLogprobs | None:
    """Logprobs that a plan asks for; None when it asks for none, and on ranks other than 0.

    Args:
        hidden: [T, hidden] of the step.
        top_wanted: [E] top logprobs of each extend row; None on ranks that do not sample.
    """
    if not (work.ext_lp_starts >= 0).any():
        return None
    wanted = _wanted(work)
    most = 0 if top_wanted is None else int(top_wanted[work.ext_lp_starts >= 0].max())
    parts: list[Logprobs] = []
    for start in range(0, len(wanted.at), SLICE_TOKENS):
        piece = slice(start, start + SLICE_TOKENS)
        at, targets = (upload(a[piece], hidden.device) for a in (wanted.at, wanted.targets))
        logits = model.logits(hidden.index_select(0, at))
        if logits is not None:
            parts.append(logprobs_of(logits, targets, most))
    if top_wanted is None:
        return None
    return PromptLogprobs(wanted.counts, np.repeat(top_wanted, wanted.counts), join(parts) if parts else None)


def _wanted(work: Work) -> _Wanted:
    """A chunk over positions [s, s+n) predicts tokens s+1 .. s+n, the last one only when `ext_next` tells it."""
    ends = work.ext_starts + work.ext_lens
    first = np.maximum(work.ext_lp_starts, work.ext_starts + 1)
    counts = np.where(work.ext_lp_starts >= 0, np.maximum(ends + (work.ext_next >= 0) - first, 0), 0)
    offsets = np.cumsum(work.ext_lens) - work.ext_lens
    position = np.repeat(first, counts) + ragged_arange(counts)
    base = np.repeat(offsets - work.ext_starts, counts)
    last = position == np.repeat(ends, counts)
    own = work.ext_tokens[np.where(last, 0, base + position)]
    return _Wanted(counts, base + position - 1, np.where(last, np.repeat(work.ext_next, counts), own))

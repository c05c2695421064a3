"""Choose tokens: greedy, or by temperature, top-k, top-p and min-p from given uniforms.

Filters apply in the order top-k, top-p (over what top-k left), min-p (against the most likely token). Never sorts
the vocabulary: candidates are the largest 64, 512 or 4,096 logits, more only when a nucleus needs them. A row's
result depends on its own parameters only, not on the batch. NaN logits give some fixed valid token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.worker.upload import upload

GREEDY_BELOW = 1e-5
"""A temperature under this is greedy: dividing by it would only overflow."""
_LADDER = (64, 512, 4096)


@dataclass(frozen=True, slots=True)
class Filters:
    """Sampling parameters of N rows, on the host."""

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    """0 or less = off"""
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]

    def take(self, index: npt.NDArray[np.int64]) -> Filters:
        return Filters(self.temperature[index], self.top_k[index], self.top_p[index], self.min_p[index])


def greedy(logits: Tensor) -> Tensor:
    """[N] index of the largest of logits [N, V]."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    return torch.from_numpy(logits.float().numpy().argmax(-1))  # numpy's is vectorized, torch's is not


def draw(logits: Tensor, filters: Filters, u: Tensor) -> Tensor:
    """One token per row by inverting the cumulative distribution at `u`.

    Args:
        logits: [N, V] fp32.
        filters: of the N rows, temperatures at least `GREEDY_BELOW`.
        u: [N] fp32 in [0, 1).
    """
    vocab = logits.shape[1]
    by_k = (filters.top_k > 0) & (filters.top_k < vocab)
    everything = ~by_k & (filters.top_p >= 1.0)
    out = torch.empty(len(by_k), dtype=torch.int64, device=logits.device)
    if everything.any():
        index = np.flatnonzero(everything)
        where = upload(index, logits.device)
        out[where] = _draw_from_all(logits[where], filters.take(index), u[where])
    pending = np.flatnonzero(~everything)
    need = np.where(by_k, filters.top_k, 1)
    for size in (*(s for s in _LADDER if s < vocab), vocab):
        index = pending[need[pending] <= size]
        if len(index):
            where = upload(index, logits.device)
            tokens, done = _draw_from_top(logits[where], filters.take(index), u[where], by_k[index], size)
            out[where] = tokens
            pending = np.setdiff1d(pending, index[done], assume_unique=True)
    return out


def _draw_from_all(logits: Tensor, filters: Filters, u: Tensor) -> Tensor:
    """Temperature and min-p only: no candidates, the whole vocabulary in its own order."""
    p = _weights(logits, logits.amax(-1, keepdim=True), filters)
    if (filters.min_p > 0).any():
        p.masked_fill_(p < _column(filters.min_p, p), 0.0)
    cumulative = p.cumsum(-1)
    target = (u * cumulative[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)


def _draw_from_top(
    logits: Tensor, filters: Filters, u: Tensor, by_k: npt.NDArray[np.bool_], size: int
) -> tuple[Tensor, npt.NDArray[np.bool_]]:
    """Draw from the `size` largest; False for rows whose nucleus is larger than that (their token is void)."""
    values, ids = logits.topk(size)
    top = values[:, :1]
    p = _weights(values, top, filters)
    limited = upload(by_k, p.device)
    if by_k.any():
        rank = torch.arange(size, device=p.device)
        most = upload(np.where(by_k, filters.top_k, size), p.device)
        p.masked_fill_(rank >= most.unsqueeze(1), 0.0)
    cumulative = p.cumsum(-1)
    total = cumulative[:, -1]
    if not by_k.all() and size < logits.shape[1]:
        total = torch.where(limited, total, _weights(logits, top, filters).sum(-1))
    nucleus = _column(filters.top_p, p).squeeze(1) * total
    done = limited | (cumulative[:, -1] >= nucleus) | (size == logits.shape[1]) | ~torch.isfinite(total)
    keep = ((cumulative - p) < nucleus.unsqueeze(1)) & (p >= _column(filters.min_p, p) * p[:, :1]) & (p > 0)
    last = keep.sum(-1, keepdim=True).sub_(1).clamp_(min=0)  # what is kept is a prefix: p descends
    target = u.unsqueeze(1) * cumulative.gather(1, last)
    choice = torch.minimum((cumulative <= target).sum(-1, keepdim=True), last)
    return ids.gather(1, choice).squeeze(1), done.cpu().numpy()


def _weights(values: Tensor, top: Tensor, filters: Filters) -> Tensor:
    """Probabilities relative to the most likely token's, after temperature."""
    return ((values - top) / _column(filters.temperature, values)).exp_()


def _column(values: npt.NDArray[np.float32], like: Tensor) -> Tensor:
    return upload(values, like.device).unsqueeze(1)

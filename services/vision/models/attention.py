"""Attention inside segments: every image, frame or window of a batch sees itself only.

On a GPU in half precision all segments are one launch; else those of equal length are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


class Segments:
    """How T tokens in a row are divided. Lives for one batch; shared by all layers with that division."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """lengths: of the segments in their order; they sum up to T."""
        sizes = np.asarray(lengths, np.int64)
        self._ends = np.cumsum(sizes)
        self._longest = int(sizes.max())
        self._bounds = torch.from_numpy(np.concatenate(([0], self._ends)).astype(np.int32)).to(device)
        self._groups = [_rows(self._ends[sizes == n] - n, int(n), device) for n in np.unique(sizes)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [T, H, D] -> [T, H * D]"""
        if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
            out = varlen_attn(q, k, v, self._bounds, self._bounds, self._longest, self._longest)
            assert isinstance(out, Tensor)
            return out.flatten(1)
        if len(self._groups) == 1:
            return _by_length(q, k, v, len(self._ends)).flatten(1)
        out = torch.empty_like(q)
        for rows, count in self._groups:
            out[rows] = _by_length(q[rows], k[rows], v[rows], count)
        return out.flatten(1)


def _rows(starts: np.ndarray[tuple[int], np.dtype[np.int64]], length: int, device: torch.device) -> tuple[Tensor, int]:
    """Token numbers of all segments of one length, and how many segments they are."""
    return torch.from_numpy((starts[:, None] + np.arange(length)).ravel()).to(device), len(starts)


def _by_length(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """`count` segments of equal length: [count * L, H, D] each."""
    q, k, v = (x.view(count, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))  # [count, H, L, D]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)

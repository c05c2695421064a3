"""Attention inside segments: every image, frame or window of a batch sees itself only.

On a GPU in half precision all segments are one launch, but for long ones of equal length: cuDNN's kernel is 1.5 times
as fast there, and slow to be set up for a new length. Elsewhere segments of equal length are one launch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

CUDNN_TOKENS = 20_000
"""Segments so long are worth the 55 ms that cuDNN takes for a new length (H100)."""


class Segments:
    """How T tokens in a row are divided. Lives for one batch; shared by all layers with that division."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """lengths: of the segments in their order; they sum up to T."""
        self._lengths, self._device = np.asarray(lengths, np.int64), device
        self._ends = np.cumsum(self._lengths)
        self._longest = int(self._lengths.max())

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [T, H, D] -> [T, H * D]"""
        if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
            if len(self._groups) == 1 and self._longest >= CUDNN_TOKENS:
                with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
                    return _by_length(q, k, v, len(self._ends)).flatten(1)
            out = varlen_attn(q, k, v, self._bounds, self._bounds, self._longest, self._longest)
            assert isinstance(out, Tensor)
            return out.flatten(1)
        if len(self._groups) == 1:
            return _by_length(q, k, v, len(self._ends)).flatten(1)
        out = torch.empty_like(q)
        for rows, count in self._groups:
            out[rows] = _by_length(q[rows], k[rows], v[rows], count)
        return out.flatten(1)

    @functools.cached_property
    def _bounds(self) -> Tensor:
        """Where segments start, and the end: [S + 1] int32"""
        return torch.from_numpy(np.concatenate(([0], self._ends)).astype(np.int32)).to(self._device)

    @functools.cached_property
    def _groups(self) -> list[tuple[Tensor, int]]:
        """Of each length: the numbers of the tokens in all segments that have it, and how many segments they are."""
        groups = []
        for length in np.unique(self._lengths):
            starts = self._ends[self._lengths == length] - length
            rows = (starts[:, None] + np.arange(length)).ravel()
            groups.append((torch.from_numpy(rows).to(self._device), len(starts)))
        return groups


def _by_length(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """`count` segments of equal length: [count * L, H, D] each."""
    q, k, v = (x.view(count, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))  # [count, H, L, D]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)

"""Embeddings of images and videos that take the place of tokens' own. Made by the engine, read by model files."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class MediaInput:
    """Of one step."""

    at: Tensor
    """[I] int64, distinct tokens among the step's T"""
    rows: Tensor
    """[I, hidden * (1 + levels)]: what the token is embedded as, then what is added behind the first `levels` layers"""

    def embed_(self, x: Tensor) -> None:
        """Put the embeddings in their places of x [T, hidden]."""
        x.index_copy_(0, self.at, self.rows[:, : x.shape[1]])

    def add_behind_(self, layer: int, residual: Tensor) -> None:
        """Add what belongs behind a layer to the residual stream [T, hidden]; nothing behind most."""
        hidden = residual.shape[1]
        first = hidden * (layer + 1)
        if first < self.rows.shape[1]:
            residual.index_add_(0, self.at, self.rows[:, first : first + hidden])

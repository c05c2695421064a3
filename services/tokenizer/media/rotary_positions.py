"""Positions of three dimensions (time, height, width) of prompts with images and videos (M-RoPE).

Words count on in all three; the tokens of an image lie on its grid; words behind it go on after the grid's longer
side. The same numbers as transformers' `get_rope_index`.
Source: Qwen2-VL (Wang et al. 2024); Qwen2.5-VL for time in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class GridSpan:
    """Tokens of a prompt that lie on a grid."""

    start: int
    grid: tuple[int, int, int]
    """[t, h, w] in tokens"""
    time_step: float = 1.0
    """Positions between two steps of t"""

    @property
    def tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w


def rotary_positions(length: int, spans: Sequence[GridSpan]) -> tuple[I32, int]:
    """Positions [3, length] of a prompt, and what is added to the index of every token behind it.

    Args:
        spans: in order, not overlapping.
    """
    out = np.empty((3, length), np.int32)
    at = position = 0
    for span in spans:
        words = span.start - at
        out[:, at : span.start] = np.arange(position, position + words)
        position += words
        at = span.start + span.tokens
        t, h, w = span.grid
        time = (np.arange(t, dtype=np.float32) * np.float32(span.time_step)).astype(np.int32)
        grid = np.stack(np.meshgrid(time, np.arange(h), np.arange(w), indexing="ij")).reshape(3, -1)
        out[:, span.start : at] = grid + position
        position += max(h, w)
    out[:, at:] = np.arange(position, position + length - at)
    return out, int(out.max()) + 1 - length if length else 0

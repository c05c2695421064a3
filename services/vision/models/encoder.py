"""What all encoders are, and how a batch is cut so that its memory is bounded.

Media are made of units that are computed independently: joined frames, or tiles. A batch is computed in chunks of
whole units, a long video in several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.vision.processing.prepared import Prepared
from shared.checkpoint.target import Target

MAX_PATCHES = 16384
"""Computed at once, unless one unit alone has more."""


class Encoder(Protocol):
    """A loaded encoder. Not for several threads at once."""

    width: int
    """Numbers per token."""
    dtype: torch.dtype

    def encode(self, items: Sequence[Prepared]) -> list[Tensor]:
        """[tokens, width] of each item, on the encoder's device; as if each had been alone."""


class UnloadedEncoder(Encoder, Protocol):
    """An encoder as it is built, for the loader."""

    def targets(self) -> dict[str, Target]:
        """Canonical checkpoint names to memory."""

    def skips(self, name: str) -> bool:
        """Whether a tensor of the checkpoint belongs to a part that is never computed."""


@dataclass(frozen=True, slots=True)
class Part:
    """Units `start` to `start + count` of an item."""

    item: int
    start: int
    count: int


def chunks(sizes: Sequence[tuple[int, int]], max_patches: int) -> Iterator[list[Part]]:
    """Cut a batch.

    Args:
        sizes: of each item: how many units, and patches of one unit.

    Yields:
        What is computed together, in order: at most `max_patches`, but at least one unit.
    """
    chunk: list[Part] = []
    room = max_patches
    for item, (units, patches) in enumerate(sizes):
        start = 0
        while start < units:
            count = min(units - start, room // patches)
            if count == 0 and chunk:
                yield chunk
                chunk, room = [], max_patches
                continue
            count = max(count, 1)
            chunk.append(Part(item, start, count))
            start, room = start + count, max(room - count * patches, 0)
    if chunk:
        yield chunk

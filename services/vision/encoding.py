"""What the service needs of a model: how large an image becomes, how it is prepared, how it is encoded.

The families are in `models/` and `processing/`; tests put fakes here. `Prepared` is made in a decode thread and encoded
on the encoder's thread, so neither side shares anything mutable with the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from shared.messages.media import Detail


class Layout(Protocol):
    """How many tokens an image of a given size becomes."""

    @property
    def tokens(self) -> int: ...
    @property
    def grid(self) -> list[int]: ...


class Prepared(Protocol):
    """One image or video, resized, as the encoder takes it."""

    @property
    def tokens(self) -> int: ...
    @property
    def grid(self) -> list[int]: ...
    @property
    def timestamps_s(self) -> list[float]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def patches(self) -> int:
        """What encoding it costs."""


class Processor(Protocol):
    """Sizes and pixels. Thread-safe: it has no state."""

    def layout(self, width: int, height: int, detail: Detail) -> Layout:
        """
        Raises:
            InvalidRequest: the model takes no image of this shape.
        """

    def prepare(self, image: Image.Image, detail: Detail) -> Prepared: ...

    def sample_frames(
        self, duration_s: float, fps: float, count: int, asked_fps: float | None, max_frames: int | None
    ) -> Sequence[int]:
        """
        Raises:
            InvalidRequest: the model takes no videos, or nothing is left of this one.
        """

    def prepare_video(self, frames: list[Image.Image], timestamps_s: list[float]) -> Prepared: ...


class Encoder(Protocol):
    """The vision tower and its projector. Used by one thread."""

    @property
    def width(self) -> int:
        """Numbers per token."""

    @property
    def dtype(self) -> torch.dtype: ...

    def encode(self, items: list[Any]) -> list[torch.Tensor]:
        """
        Shape:
            one [tokens, width] per item, on the encoder's device
        """


def dtype_name(dtype: torch.dtype) -> str:
    """As `EmbeddingRef.dtype` spells it."""
    return str(dtype).removeprefix("torch.")


def host_rows(embeddings: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """Embeddings as raw rows in host memory.

    Shape:
        [tokens, width] to uint8 [tokens, width * bytes of dtype]
    """
    rows = embeddings.detach().to(device="cpu", dtype=dtype).contiguous()
    return rows.view(torch.uint8).reshape(rows.shape[0], -1).numpy()

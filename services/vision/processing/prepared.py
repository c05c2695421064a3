"""The contract of image processing: what an image becomes, before and after its pixels are touched.

Pixels stay bytes. Scaling them to numbers and cutting them into patches is the encoder's first step, on its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from shared.messages.embedding import Detail


@dataclass(frozen=True, slots=True)
class Layout:
    """What an image or a video of some size becomes."""

    tokens: int
    grid: list[int]
    """[t, h, w] in tokens, for models with positions of three dimensions; empty for others."""
    patches: int
    """What the encoder computes on: the unit of its cost."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Tiles of an image that was fitted into a larger canvas."""

    rows: int
    cols: int
    """Of tiles."""
    pad_rows: int
    pad_cols: int
    """Features without image on each side of the canvas: above and below, or left and right."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image or a video at the encoder's size."""

    pixels: NDArray[np.uint8]
    """[F, height, width, 3] RGB: an image, the frames of a video, or an overview and then the tiles of its canvas."""
    layout: Layout
    timestamps_s: list[float] = field(default_factory=list)
    """Of a video: the time of each of the t joined frames."""
    seconds_per_frame: float = 0.0
    """Of a video: between two joined frames, by how densely it was sampled."""
    canvas: Canvas | None = None

    @property
    def tokens(self) -> int:
        return self.layout.tokens

    @property
    def grid(self) -> list[int]:
        return self.layout.grid

    @property
    def patches(self) -> int:
        return self.layout.patches

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


class Processor(Protocol):
    """One model's processing. Stateless; may be called from several threads.

    All raise InvalidRequest for what the model cannot take.
    """

    def layout(self, width: int, height: int, detail: Detail = "auto") -> Layout:
        """Of an image of that many pixels. Touches none."""

    def prepare(self, image: Image, detail: Detail = "auto") -> Prepared:
        """image: RGB."""

    def sample_frames(
        self, duration_s: float, fps: float, count: int, asked_fps: float | None, max_frames: int | None
    ) -> list[int]:
        """Which frames of a video to look at, ascending.

        Args:
            duration_s, fps, count: of the video; fps 0 = unknown, then it is count / duration_s.
            asked_fps: frames looked at per second; None = as many as the model is used to.
            max_frames: at most so many; None = the model's own limit.
        """

    def video_layout(self, width: int, height: int, frames: int) -> Layout:
        """Of a video of which so many frames are looked at."""

    def prepare_video(self, frames: Sequence[Image], timestamps_s: Sequence[float]) -> Prepared:
        """frames: RGB, all of one size, at these times."""

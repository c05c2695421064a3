"""Images of LLaVA-1.5: one square, cut out of the middle or padded, whatever the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from PIL import Image as images
from PIL.Image import Image, Resampling

from services.vision.processing.prepared import Layout, Prepared
from shared.errors import InvalidRequest
from shared.media_config import MediaConfig
from shared.messages.embedding import Detail

ELONGATED = 32
"""Aspect ratio up to which an image is resized as a whole."""
MAX_PADDED = 4096
"""Longest edge that is padded to a square as it is; a longer one is shrunk to it first, or the square would be huge."""


class LlavaProcessor:
    """See `Processor`. All images cost the same, so detail changes nothing."""

    def __init__(self, config: MediaConfig) -> None:
        assert config.llava is not None
        self._side = int(config.vision["image_size"])
        self._resample = Resampling(config.image.resample)
        self._pad = config.image.pad_to_square
        self._background = tuple(int(mean * 255) for mean in config.pixels.mean)
        patches = (self._side // config.patch_size) ** 2
        self._layout = Layout(patches + config.llava.keep_class_token, [], patches)

    def layout(self, width: int, height: int, detail: Detail = "auto") -> Layout:
        return self._layout

    def prepare(self, image: Image, detail: Detail = "auto") -> Prepared:
        square = self._padded(image) if self._pad else self._cut(image)
        return Prepared(np.array(square)[None], self._layout)

    def sample_frames(
        self, duration_s: float, fps: float, count: int, asked_fps: float | None, max_frames: int | None
    ) -> list[int]:
        refuse_video()

    def video_layout(self, width: int, height: int, frames: int) -> Layout:
        refuse_video()

    def prepare_video(self, frames: Sequence[Image], timestamps_s: Sequence[float]) -> Prepared:
        refuse_video()

    def _cut(self, image: Image) -> Image:
        """The shorter edge to the side, and the middle of the longer one.

        Of a very elongated image only the middle is computed, which may round some bytes differently.
        """
        side, short = self._side, min(image.size)
        (width, left), (height, top) = (_resized(edge, short, side) for edge in image.size)
        if max(width, height) <= ELONGATED * side:
            resized = image.resize((width, height), self._resample)
            return resized.crop((left, top, left + side, top + side))
        x_scale, y_scale = image.width / width, image.height / height
        right, bottom = min((left + side) * x_scale, image.width), min((top + side) * y_scale, image.height)
        return image.resize((side, side), self._resample, box=(left * x_scale, top * y_scale, right, bottom))

    def _padded(self, image: Image) -> Image:
        """The longer edge to the side, centred on the model's mean colour."""
        longest = max(image.size)
        if longest > MAX_PADDED:
            width, height = (max(1, round(edge * MAX_PADDED / longest)) for edge in image.size)
            image, longest = image.resize((width, height), self._resample), MAX_PADDED
        square = images.new("RGB", (longest, longest), self._background)
        square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        return square.resize((self._side, self._side), self._resample)


def refuse_video() -> NoReturn:
    """What the LLaVA families say to videos."""
    raise InvalidRequest("this model takes images, no videos: send frames of it as images")


def _resized(edge: int, short: int, side: int) -> tuple[int, int]:
    """An edge's length once the shorter one has `side`, and where the middle `side` of it begins."""
    length = side if edge == short else int(side * edge / short)
    return length, (length - side) // 2

"""Images of LLaVA-NeXT: an overview in one square, and the image on a canvas of several squares ("anyres")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL.Image import Image, Resampling

from services.vision.processing.llava import refuse_video
from services.vision.processing.prepared import Canvas, Layout, Prepared
from services.vision.processing.resize import resized
from shared.media_config import MediaConfig
from shared.messages.embedding import Detail


class LlavaNextProcessor:
    """See `Processor`. With low detail an image is its overview alone."""

    def __init__(self, config: MediaConfig) -> None:
        self._side = int(config.vision["image_size"])
        self._cells = self._side // config.patch_size
        self._resample = Resampling(config.image.resample)
        self._pinpoints = config.image.pinpoints

    def layout(self, width: int, height: int, detail: Detail = "auto") -> Layout:
        if detail == "low":
            return self._layout(None)
        return self._layout(self._canvas(width, height, *self._best(width, height)))

    def prepare(self, image: Image, detail: Detail = "auto") -> Prepared:
        side = self._side
        overview = resized(image, side, side, self._resample)[None]
        if detail == "low":
            return Prepared(overview, self._layout(None))
        height, width = self._best(image.width, image.height)
        pixels = self._on_canvas(image, height, width)  # [height, width, 3]
        tiles = pixels.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        canvas = self._canvas(image.width, image.height, height, width)
        return Prepared(np.concatenate((overview, tiles)), self._layout(canvas), canvas=canvas)

    def sample_frames(
        self, duration_s: float, fps: float, count: int, asked_fps: float | None, max_frames: int | None
    ) -> list[int]:
        refuse_video()

    def video_layout(self, width: int, height: int, frames: int) -> Layout:
        refuse_video()

    def prepare_video(self, frames: Sequence[Image], timestamps_s: Sequence[float]) -> Prepared:
        refuse_video()

    def _best(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the canvas on which most of the image's pixels survive; among equals the smallest."""
        best, most, least_waste = self._pinpoints[0], 0, math.inf
        for canvas_height, canvas_width in self._pinpoints:
            scale = min(canvas_width / width, canvas_height / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            waste = canvas_width * canvas_height - kept
            if kept > most or (kept == most and waste < least_waste):
                best, most, least_waste = (canvas_height, canvas_width), kept, waste
        return best

    def _on_canvas(self, image: Image, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The image as large as fits, in the middle of black."""
        x_scale, y_scale = width / image.width, height / image.height
        if x_scale < y_scale:
            fit_width, fit_height = width, min(math.ceil(image.height * x_scale), height)
        else:
            fit_width, fit_height = min(math.ceil(image.width * y_scale), width), height
        left, top = (width - fit_width) // 2, (height - fit_height) // 2
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[top : top + fit_height, left : left + fit_width] = resized(image, fit_width, fit_height, self._resample)
        return pixels

    def _canvas(self, width: int, height: int, canvas_height: int, canvas_width: int) -> Canvas:
        """Where the features of a canvas show the image. Rounds as the model's own code does."""
        rows, cols = canvas_height // self._side, canvas_width // self._side
        tall, wide = rows * self._cells, cols * self._cells
        if width / height > wide / tall:
            kept = int(round(height * (wide / width), 7))
            return Canvas(rows, cols, (tall - kept) // 2, 0)
        kept = int(round(width * (tall / height), 7))
        return Canvas(rows, cols, 0, (wide - kept) // 2)

    def _layout(self, canvas: Canvas | None) -> Layout:
        """An overview ends with one newline; the rows of a canvas end with one each, and the overview has none then."""
        squares = self._cells**2
        if canvas is None:
            return Layout(squares + 1, [], squares)
        tall = canvas.rows * self._cells - 2 * canvas.pad_rows
        wide = canvas.cols * self._cells - 2 * canvas.pad_cols
        return Layout(squares + tall * (wide + 1), [], squares * (1 + canvas.rows * canvas.cols))

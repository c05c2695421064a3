"""A processor and an encoder without a model: embeddings that say which pixels they were made of."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from shared.errors import InvalidRequest

PATCH = 8
WIDTH = 4


@dataclass(frozen=True)
class FakeLayout:
    tokens: int
    grid: list[int]


@dataclass(frozen=True)
class FakePrepared:
    tokens: int
    grid: list[int]
    mean: float
    timestamps_s: list[float] = field(default_factory=list)
    seconds_per_frame: float = 0.0

    @property
    def nbytes(self) -> int:
        return self.tokens * PATCH * PATCH * 3

    @property
    def patches(self) -> int:
        return self.tokens


class FakeProcessor:
    """One token per started square of 8 x 8 pixels, at most 64 on a side; low detail: one token."""

    def layout(self, width: int, height: int, detail: str) -> FakeLayout:
        if max(width, height) > 200 * min(width, height):
            raise InvalidRequest(f"an image of {width} x {height} pixels is too long and thin for the model")
        h, w = (1, 1) if detail == "low" else (min(64, -(-height // PATCH)), min(64, -(-width // PATCH)))
        return FakeLayout(h * w, [1, h, w])

    def prepare(self, image: Image.Image, detail: str) -> FakePrepared:
        assert image.mode == "RGB"
        layout = self.layout(*image.size, detail)
        return FakePrepared(layout.tokens, layout.grid, float(np.asarray(image).mean()))

    def sample_frames(
        self, duration_s: float, fps: float, count: int, asked_fps: float | None, max_frames: int | None
    ) -> list[int]:
        wanted = min(count, max(1, round(duration_s * (asked_fps or 2))), max_frames or count)
        return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]

    def prepare_video(self, frames: list[Image.Image], timestamps_s: list[float]) -> FakePrepared:
        mean = float(np.mean([np.asarray(frame).mean() for frame in frames]))
        return FakePrepared(len(frames), [len(frames), 1, 1], mean, timestamps_s)


class FakeEncoder:
    """Every row of an item is filled with the mean of its pixels. Counts; fails on items darker than `refuse_under`."""

    width = WIDTH

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.batches: list[int] = []
        self.refuse_under = -1.0
        self.entered = threading.Event()
        """Set when a batch begins."""
        self.go = threading.Event()
        """Cleared by a test that wants the encoder to be busy."""
        self.go.set()

    def encode(self, items: list[Any]) -> list[torch.Tensor]:
        self.entered.set()
        assert self.go.wait(30)
        self.batches.append(len(items))
        if any(item.mean < self.refuse_under for item in items):
            raise RuntimeError("too dark")
        return [torch.full((item.tokens, WIDTH), item.mean, dtype=torch.float32) for item in items]

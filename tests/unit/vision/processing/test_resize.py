"""Bands of an image that are resized each by itself make the image that is resized in one go."""

from __future__ import annotations

import numpy as np
import pytest
from PIL.Image import Resampling

from services.vision.processing import resize
from services.vision.processing.resize import resized
from tests.unit.vision.checkpoints import picture


@pytest.mark.parametrize("resample", [Resampling.BICUBIC, Resampling.BILINEAR, Resampling.LANCZOS])
@pytest.mark.parametrize(
    ("size", "into"),
    [((640, 480), (644, 476)), ((300, 1000), (84, 280)), ((64, 48), (1023, 767)), ((1001, 333), (7, 999)),
     ((500, 500), (500, 500)), ((37, 1), (400, 3))],
)  # fmt: skip
@pytest.mark.parametrize("cores", [2, 8])
def test_pixels_are_those_of_pillow(
    size: tuple[int, int], into: tuple[int, int], resample: Resampling, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "BAND_PIXELS", 64)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    image = picture(*size)
    want = np.array(image.resize(into, resample))
    got = resized(image, *into, resample)
    assert got.shape == want.shape
    difference = np.abs(got.astype(int) - want)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01

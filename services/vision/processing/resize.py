"""Resizing with all cores: Pillow's own filters, a band of rows to a thread.

A band is resized from its part of the whole image, beyond whose edges the filter still sees, so the pixels are those
that Pillow computes in one go.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

BAND_PIXELS = 256 * 1024
"""Of the larger one of source and result; less is not worth a thread."""
MAX_BANDS = 8


def resized(image: Image, width: int, height: int, resample: int) -> NDArray[np.uint8]:
    """[height, width, 3] pixels of an RGB image, as `Image.resize` gives them."""
    pixels = max(image.width * image.height, width * height)
    bands = max(1, min(MAX_BANDS, os.cpu_count() or 1, pixels // BAND_PIXELS, height))
    if bands == 1:
        return np.array(image.resize((width, height), Resampling(resample)))
    image.load()  # else every thread would
    out = np.empty((height, width, 3), np.uint8)
    scale = image.height / height

    def fill(band: int) -> None:
        top, bottom = height * band // bands, height * (band + 1) // bands
        box = (0, top * scale, image.width, min(bottom * scale, image.height))
        out[top:bottom] = np.asarray(image.resize((width, bottom - top), Resampling(resample), box=box))

    list(_threads().map(fill, range(bands)))
    return out


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(MAX_BANDS, os.cpu_count() or 1), thread_name_prefix="resize")

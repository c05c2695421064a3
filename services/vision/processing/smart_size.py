"""Sizes that models of any resolution resize images and videos to.

Multiples of `factor` in both directions, an area between two limits, and an aspect ratio as near to the original one as
that allows. The arithmetic is that of the models' own processors, rounding included: token counts depend on it.
"""

from __future__ import annotations

import math

from shared.errors import InvalidRequest
from shared.media_config import VideoSettings

MAX_ASPECT_RATIO = 200


def image_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) that an image is resized to.

    Raises:
        InvalidRequest: one side is more than 200 times the other.
    """
    return _fit(height, width, 1, 1, factor, min_pixels, max_pixels)


def frame_size_by_frame(
    height: int, width: int, frames: int, temporal: int, factor: int, video: VideoSettings
) -> tuple[int, int]:
    """(height, width) of a video's frames where each has the limits of an image (Qwen2-VL, Qwen2.5-VL)."""
    max_pixels = video.max_pixels
    if video.max_tokens is not None:
        budget = int(video.max_tokens * factor * factor * 0.9) * temporal // frames
        max_pixels = max(min(max_pixels, budget), int(video.min_pixels * 1.05))
    return image_size(height, width, factor, video.min_pixels, max_pixels)


def frame_size_by_video(
    height: int, width: int, frames: int, temporal: int, factor: int, video: VideoSettings
) -> tuple[int, int]:
    """(height, width) of a video's frames where the limits are of all frames together (Qwen3-VL)."""
    max_pixels = video.max_pixels
    if video.max_tokens is not None:
        share = min(video.max_tokens * factor * factor, max_pixels // frames)
        max_pixels = max(share, int(video.min_pixels * 1.05)) * frames
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    joined = round(frames / temporal) * temporal
    return _fit(height, width, frames, joined, factor, video.min_pixels, max_pixels)


def _fit(
    height: int, width: int, frames: int, joined: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The limits are of the area of `joined` frames; scales are found with that of `frames`."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InvalidRequest(
            f"{width} x {height} pixels: one side may be at most {MAX_ASPECT_RATIO} times the other; cut it into parts"
        )
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if joined * tall * wide > max_pixels:
        shrink = math.sqrt((frames * height * width) / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif joined * tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return tall, wide

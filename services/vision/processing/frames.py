"""Which frames of a video models look at: evenly spread, as many a second as asked for, within limits.

The arithmetic is that of the models' own processors. Called by the families' processors.
"""

from __future__ import annotations

import math

import numpy as np

from shared.errors import InvalidRequest
from shared.media_config import VideoSettings


def frames_from_starts(
    duration_s: float, fps: float, count: int, asked_fps: float, max_frames: int, temporal: int, video: VideoSettings
) -> list[int]:
    """The first frame of each of equal parts of the video (Qwen2-VL, Qwen2.5-VL); a multiple of `temporal` of them."""
    seconds = _seconds(duration_s, fps, count)
    most = min(max_frames, count) // temporal * temporal
    wanted = min(max(seconds * asked_fps, video.min_frames), most)
    number = math.floor(wanted / temporal) * temporal
    if number == 0:  # shorter than what is joined: the encoder repeats the last frame
        return list(range(min(count, max(max_frames, 1))))
    starts = np.arange(0, count, count / number).astype(np.float32).astype(int)
    return starts.tolist()[:number]


def frames_across(
    duration_s: float, fps: float, count: int, asked_fps: float, max_frames: int, temporal: int, video: VideoSettings
) -> list[int]:
    """From the first frame to the last one in equal steps (Qwen3-VL)."""
    wanted = int(_seconds(duration_s, fps, count) * asked_fps)
    number = min(max(wanted, video.min_frames), max_frames, count)
    return np.linspace(0, count - 1, number).round().astype(int).tolist()


def joined_times(timestamps_s: list[float], temporal: int) -> list[float]:
    """The middle of each group of `temporal` frames; the last frame is repeated to fill its group."""
    full = timestamps_s + timestamps_s[-1:] * (-len(timestamps_s) % temporal)
    return [(full[i] + full[i + temporal - 1]) / 2 for i in range(0, len(full), temporal)]


def _seconds(duration_s: float, fps: float, count: int) -> float:
    if count < 1:
        raise InvalidRequest("the video has no frames")
    return count / fps if fps > 0 else duration_s

"""Images and videos of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, one token per merged square of patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL.Image import Image

from services.vision.processing.frames import frames_across, frames_from_starts, joined_times
from services.vision.processing.prepared import Layout, Prepared
from services.vision.processing.resize import resized
from services.vision.processing.smart_size import frame_size_by_frame, frame_size_by_video, image_size
from shared.errors import InvalidRequest
from shared.media_config import MediaConfig, VideoSettings
from shared.messages.embedding import Detail

LOW_DETAIL_TOKENS = 256
"""What "low" bounds an image to; an elongated one may take a little less."""

FrameSize = Callable[[int, int, int, int, int, VideoSettings], tuple[int, int]]
Sampling = Callable[[float, float, int, float, int, int, VideoSettings], list[int]]


class QwenProcessor:
    """See `Processor`. The three families differ in their videos only."""

    def __init__(self, config: MediaConfig) -> None:
        assert config.video is not None
        self._image, self._video, self._patch = config.image, config.video, config.patch_size
        self._merge, self._temporal = config.merge_size, config.temporal_patch_size
        self._factor = config.patch_size * config.merge_size
        newest = config.family == "qwen3_vl"
        self._frame_size: FrameSize = frame_size_by_video if newest else frame_size_by_frame
        self._sampling: Sampling = frames_across if newest else frames_from_starts

    def layout(self, width: int, height: int, detail: Detail = "auto") -> Layout:
        return self._layout(1, *self._image_size(width, height, detail))

    def prepare(self, image: Image, detail: Detail = "auto") -> Prepared:
        height, width = self._image_size(image.width, image.height, detail)
        pixels = resized(image, width, height, self._image.resample)
        return Prepared(pixels[None], self._layout(1, height, width))

    def sample_frames(
        self, duration_s: float, fps: float, count: int, asked_fps: float | None, max_frames: int | None
    ) -> list[int]:
        video = self._video
        most = min(max_frames or video.max_frames, video.max_frames)
        return self._sampling(duration_s, fps, count, asked_fps or video.fps, most, self._temporal, video)

    def video_layout(self, width: int, height: int, frames: int) -> Layout:
        return self._layout(-(-frames // self._temporal), *self._video_size(width, height, frames))

    def prepare_video(self, frames: Sequence[Image], timestamps_s: Sequence[float]) -> Prepared:
        if not frames:
            raise InvalidRequest("the video has no frames")
        size = frames[0].size
        height, width = self._video_size(*size, len(frames))
        pixels = np.empty((len(frames), height, width, 3), np.uint8)
        for i, frame in enumerate(frames):
            pixels[i] = resized(frame, width, height, self._video.resample)
        layout = self._layout(-(-len(frames) // self._temporal), height, width)
        return Prepared(pixels, layout, joined_times(list(timestamps_s), self._temporal))

    def _image_size(self, width: int, height: int, detail: Detail) -> tuple[int, int]:
        least, most = self._image.min_pixels, self._image.max_pixels
        if detail == "low":
            most = min(most, LOW_DETAIL_TOKENS * self._factor**2)
            least = min(least, most)
        return image_size(height, width, self._factor, least, most)

    def _video_size(self, width: int, height: int, frames: int) -> tuple[int, int]:
        return self._frame_size(height, width, max(frames, self._temporal), self._temporal, self._factor, self._video)

    def _layout(self, joined: int, height: int, width: int) -> Layout:
        grid = [joined, height // self._factor, width // self._factor]
        tokens = grid[0] * grid[1] * grid[2]
        return Layout(tokens, grid, tokens * self._merge**2)

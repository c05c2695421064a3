"""Which frames are looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from services.vision.processing.frames import frames_across, frames_from_starts, joined_times
from services.vision.processing.prepared import Processor
from shared.errors import InvalidRequest
from shared.media_config import VideoSettings
from tests.unit.vision.checkpoints import processor

VIDEO = VideoSettings(resample=3, min_pixels=1, max_pixels=1, fps=2.0, min_frames=4, max_frames=768)
VIDEOS = [(24.0, 240), (29.97, 1000), (30.0, 7), (25.0, 4), (1.0, 3), (60.0, 100_000), (12.5, 37)]
"""(fps, frames)"""


@pytest.mark.parametrize("asked_fps", [0.5, 2.0, 3.7, 100.0])
@pytest.mark.parametrize(("fps", "count"), VIDEOS)
def test_starts_of_equal_parts_are_what_transformers_takes(fps: float, count: int, asked_fps: float) -> None:
    most = math.floor(min(768, count) / 2) * 2
    number = math.floor(min(max(count / fps * asked_fps, 4), most, count) / 2) * 2
    theirs = torch.arange(0, count, count / number).int().tolist()
    assert frames_from_starts(0.0, fps, count, asked_fps, 768, 2, VIDEO) == theirs[:number]


@pytest.mark.parametrize("asked_fps", [0.5, 2.0, 3.7, 100.0])
@pytest.mark.parametrize(("fps", "count"), VIDEOS)
def test_steps_from_first_to_last_are_what_transformers_takes(fps: float, count: int, asked_fps: float) -> None:
    number = min(max(int(count / fps * asked_fps), 4), 768, count)
    theirs = np.linspace(0, count - 1, number).round().astype(int).tolist()
    assert frames_across(0.0, fps, count, asked_fps, 768, 2, VIDEO) == theirs


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_request_may_ask_for_fewer_frames_but_not_for_more_than_the_model_takes(family: str) -> None:
    ours: Processor = processor(family)
    assert len(ours.sample_frames(100.0, 30.0, 3000, None, None)) == 200
    assert len(ours.sample_frames(100.0, 30.0, 3000, 1.0, None)) == 100
    assert len(ours.sample_frames(100.0, 30.0, 3000, None, 10)) == 10
    assert len(ours.sample_frames(10_000.0, 30.0, 300_000, None, 100_000)) == 768


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_without_a_rate_the_duration_decides(family: str) -> None:
    ours = processor(family)
    assert ours.sample_frames(20.0, 0.0, 600, None, None) == ours.sample_frames(20.0, 30.0, 600, None, None)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_the_shortest_videos_are_looked_at_whole(family: str) -> None:
    assert processor(family).sample_frames(0.1, 30.0, 1, None, None) == [0]
    assert processor(family).sample_frames(0.1, 30.0, 2, None, None) == [0, 1]
    with pytest.raises(InvalidRequest, match="no frames"):
        processor(family).sample_frames(0.0, 30.0, 0, None, None)


def test_joined_frames_have_the_time_of_their_middle() -> None:
    assert joined_times([0.0, 1.0, 2.0], 2) == [0.5, 2.0]
    assert joined_times([0.0, 1.0, 2.0, 4.0], 2) == [0.5, 3.0]
    assert joined_times([3.0], 1) == [3.0]

"""Sizes, tokens and frames of the Qwen families are those of transformers."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
from transformers import AutoImageProcessor

from services.vision.processing.qwen_vl import QwenProcessor
from services.vision.processing.smart_size import frame_size_by_frame, frame_size_by_video, image_size
from shared.errors import InvalidRequest
from shared.media_config import MediaConfig, VideoSettings
from tests.unit.vision.checkpoints import checkpoint, media_config, picture, processor

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
VIDEO = VideoSettings(resample=3, min_pixels=4096, max_pixels=98304, fps=2.0, min_frames=4, max_frames=768)


def as_large_as_on_the_hub(family: str) -> MediaConfig:
    config = media_config(family)
    return dataclasses.replace(config, image=dataclasses.replace(config.image, max_pixels=12845056))


@pytest.mark.parametrize("family", QWEN)
def test_tokens_of_every_size_are_those_of_transformers(family: str) -> None:
    theirs = AutoImageProcessor.from_pretrained(checkpoint(family)[0], backend="pil")
    merge = media_config(family).merge_size
    dice = random.Random(0)
    for _ in range(500):
        width = int(2 ** dice.uniform(0, 13))
        height = math.ceil(width * 2 ** dice.uniform(-7.5, 7.5))
        layout = processor(family).layout(width, height)
        assert layout.tokens == theirs.get_number_of_image_patches(height, width, {}) // merge**2
        assert layout.tokens == np.prod(layout.grid)
        assert layout.patches == layout.tokens * merge**2


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
@pytest.mark.parametrize("family", QWEN)
def test_what_is_prepared_is_what_was_laid_out(family: str, detail: str) -> None:
    ours = QwenProcessor(as_large_as_on_the_hub(family))
    prepared = ours.prepare(picture(700, 1100), detail)  # type: ignore[arg-type]
    assert prepared.layout == ours.layout(700, 1100, detail)  # type: ignore[arg-type]
    config = media_config(family)
    side = config.patch_size * config.merge_size
    assert prepared.pixels.shape == (1, prepared.grid[1] * side, prepared.grid[2] * side, 3)
    assert prepared.nbytes == prepared.pixels.size
    assert prepared.canvas is None
    assert prepared.timestamps_s == []


@pytest.mark.parametrize("family", QWEN)
def test_low_detail_is_at_most_256_tokens_for_every_shape(family: str) -> None:
    ours = QwenProcessor(as_large_as_on_the_hub(family))
    for width, height in [(4000, 4000), (8000, 41), (41, 8000), (300, 3000), (28, 28)]:
        assert 0 < ours.layout(width, height, "low").tokens <= 256
    assert ours.layout(4000, 4000, "high").tokens == ours.layout(4000, 4000).tokens > 256


@pytest.mark.parametrize("family", QWEN)
def test_an_image_too_elongated_is_refused_with_its_size(family: str) -> None:
    assert processor(family).layout(200, 1).tokens > 0
    with pytest.raises(InvalidRequest, match="201 x 1 pixels: one side may be at most 200 times the other"):
        processor(family).layout(201, 1)
    with pytest.raises(InvalidRequest):
        processor(family).prepare(picture(1, 300))


def test_an_image_at_its_size_is_not_touched() -> None:
    image = picture(112, 84)
    assert np.array_equal(processor("qwen2_vl").prepare(image).pixels[0], np.asarray(image))


@pytest.mark.parametrize("family", QWEN)
def test_a_video_is_one_size_and_joined_frames_have_the_time_of_their_middle(family: str) -> None:
    frames = [picture(90, 64, seed=i) for i in range(5)]
    video = processor(family).prepare_video(frames, [0.0, 0.5, 1.0, 1.5, 2.0])
    assert video.layout == processor(family).video_layout(90, 64, 5)
    assert video.timestamps_s == [0.25, 1.25, 2.0]
    assert video.grid[0] == 3
    assert len(video.pixels) == 5
    (alone,) = processor(family).prepare_video(frames[:1], [0.0]).grid[:1]
    assert alone == 1


@pytest.mark.parametrize("family", QWEN)
def test_a_video_without_frames_is_refused(family: str) -> None:
    with pytest.raises(InvalidRequest, match="has no frames"):
        processor(family).prepare_video([], [])


def test_limits_of_frames_are_each_frames_or_all_together() -> None:
    by_frame = [frame_size_by_frame(480, 640, n, 2, 28, VIDEO) for n in (2, 64)]
    assert by_frame == [image_size(480, 640, 28, VIDEO.min_pixels, VIDEO.max_pixels)] * 2
    few, many = (frame_size_by_video(480, 640, n, 2, 32, VIDEO) for n in (2, 64))
    assert 2 * few[0] * few[1] <= VIDEO.max_pixels
    assert many == (32, 32)


def test_a_budget_of_tokens_bounds_frames_further() -> None:
    tight = dataclasses.replace(VIDEO, min_pixels=28 * 28, max_tokens=100)
    assert frame_size_by_frame(480, 640, 20, 2, 28, tight) < frame_size_by_frame(480, 640, 2, 2, 28, tight)
    tight = dataclasses.replace(VIDEO, max_tokens=16)
    height, width = frame_size_by_video(480, 640, 2, 2, 32, tight)
    assert height * width <= 16 * 32 * 32

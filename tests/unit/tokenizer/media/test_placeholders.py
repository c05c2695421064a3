"""What stands for images and videos in the prompts of each family."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from services.tokenizer.media.placeholders import placeholders_of
from shared.errors import ConfigError
from shared.media_config import load_media_config
from shared.vocabulary import Vocabulary, load_vocabulary
from tests.fakes.vlm_checkpoints import TOKEN_IDS, VOCAB_SIZE, original_llava_checkpoint
from tests.unit.vision.checkpoints import checkpoint, media_config


def vocabulary(path: Path) -> Vocabulary:
    return load_vocabulary(path, VOCAB_SIZE)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_has_one_for_images_and_one_for_videos_between_marks_of_vision(family: str) -> None:
    found = placeholders_of(media_config(family), vocabulary(checkpoint(family)[0]))
    assert found.ids == {"image": TOKEN_IDS["<|image_pad|>"], "video": TOKEN_IDS["<|video_pad|>"]}
    assert found.marks == {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    assert found.texts["video"] == "<|vision_start|><|video_pad|><|vision_end|>"
    assert found.written == found.known == "<|image_pad|>"


def test_llava_takes_images_alone() -> None:
    found = placeholders_of(media_config("llava"), vocabulary(checkpoint("llava")[0]))
    assert found.ids == {"image": TOKEN_IDS["<image>"]}
    assert found.texts == found.marks == {"image": "<image>"}


def test_a_tokenizer_without_the_written_placeholder_uses_a_token_that_it_has(tmp_path: Path) -> None:
    path, _ = original_llava_checkpoint(tmp_path)
    config = load_media_config(path)
    assert config is not None
    words = vocabulary(path)
    found = placeholders_of(config, words)
    assert found.written == found.texts["image"] == "<image>"
    assert words.encode(found.known, add_special_tokens=False) == [found.ids["image"]] == [config.image_token_id]


def test_a_placeholder_that_the_tokenizer_lacks_ends_the_start() -> None:
    config = dataclasses.replace(media_config("qwen2_vl"), image_token_id=5000)
    with pytest.raises(ConfigError, match="5000"):
        placeholders_of(config, vocabulary(checkpoint("qwen2_vl")[0]))

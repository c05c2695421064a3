"""Every family has a processor, and none needs torch or transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.llava_next import LlavaNextProcessor

from services.vision.processing import llava_next
from services.vision.processing.llava import LlavaProcessor
from services.vision.processing.qwen_vl import QwenProcessor
from services.vision.processing.registry import make_processor
from shared.media_config import load_media_config
from tests.fakes.vlm_checkpoints import FAMILIES
from tests.unit.vision.checkpoints import checkpoint, media_config


@pytest.mark.parametrize(
    ("family", "cls"),
    [
        ("llava", LlavaProcessor),
        ("llava_next", llava_next.LlavaNextProcessor),
        ("original-inside", llava_next.LlavaNextProcessor),
        ("qwen2_vl", QwenProcessor),
        ("qwen2_5_vl", QwenProcessor),
        ("qwen3_vl", QwenProcessor),
    ],
)
def test_a_family_has_its_processor(family: str, cls: type) -> None:
    assert type(make_processor(media_config(family))) is cls


def test_processing_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, services.vision.processing.registry; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_that_transformers_saves_again_mean_the_same(family: str, tmp_path: Path) -> None:
    path = tmp_path / family
    shutil.copytree(checkpoint(family)[0], path)
    AutoImageProcessor.from_pretrained(path, backend="pil").save_pretrained(path)
    assert load_media_config(path) == media_config(family)


def test_settings_nested_in_the_processors_file_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "llava_next"
    shutil.copytree(checkpoint("llava_next")[0], path)
    image, tokenizer = AutoImageProcessor.from_pretrained(path, backend="pil"), AutoTokenizer.from_pretrained(path)
    (path / "preprocessor_config.json").unlink()
    LlavaNextProcessor(image, tokenizer, patch_size=14, vision_feature_select_strategy="default").save_pretrained(path)
    assert "image_processor" in json.loads((path / "processor_config.json").read_text())
    assert not (path / "preprocessor_config.json").exists()
    assert load_media_config(path) == media_config("llava_next")

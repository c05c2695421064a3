"""Every family has a processor, and none needs torch or transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.vision.processing.llava import LlavaProcessor
from services.vision.processing.llava_next import LlavaNextProcessor
from services.vision.processing.qwen_vl import QwenProcessor
from services.vision.processing.registry import make_processor
from tests.unit.vision.checkpoints import media_config


@pytest.mark.parametrize(
    ("family", "cls"),
    [
        ("llava", LlavaProcessor),
        ("llava_next", LlavaNextProcessor),
        ("original-inside", LlavaNextProcessor),
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

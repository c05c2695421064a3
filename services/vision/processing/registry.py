"""Families to their processors."""

from __future__ import annotations

from collections.abc import Callable

from services.vision.processing.llava import LlavaProcessor
from services.vision.processing.llava_next import LlavaNextProcessor
from services.vision.processing.prepared import Processor
from services.vision.processing.qwen_vl import QwenProcessor
from shared.media_config import Family, MediaConfig

_PROCESSORS: dict[Family, Callable[[MediaConfig], Processor]] = {
    "llava": LlavaProcessor,
    "llava_next": LlavaNextProcessor,
    "qwen2_vl": QwenProcessor,
    "qwen2_5_vl": QwenProcessor,
    "qwen3_vl": QwenProcessor,
}


def make_processor(config: MediaConfig) -> Processor:
    """The processor of a checkpoint."""
    return _PROCESSORS[config.family](config)

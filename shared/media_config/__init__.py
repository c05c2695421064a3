"""What a checkpoint says about images and videos, read without torch.

One reader per family (`llava.py`, `qwen_vl.py`); all give a `MediaConfig`. Read by the tokenizer (placeholders and
positions), by the vision service (processors and encoders), by the worker (layers that get embeddings) and by the
launcher (whether there is a vision service at all).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.json_file import read_json_object
from shared.media_config.llava import llava, llava_next, original_llava
from shared.media_config.model_folder import ModelFolder, read_model_folder
from shared.media_config.qwen_vl import qwen2_5_vl, qwen2_vl, qwen3_vl
from shared.media_config.settings import (
    Family,
    ImageSettings,
    LlavaSettings,
    MediaConfig,
    PixelScale,
    VideoSettings,
)
from shared.text_config import text_config

__all__ = [
    "Family", "ImageSettings", "LlavaSettings", "MediaConfig", "PixelScale", "VideoSettings", "load_media_config",
]  # fmt: skip

_READERS: dict[str, Callable[[ModelFolder, dict[str, Any]], MediaConfig]] = {
    "LlavaForConditionalGeneration": llava,
    "LlavaNextForConditionalGeneration": llava_next,
    "LlavaLlamaForCausalLM": original_llava,
    "LlavaMistralForCausalLM": original_llava,
    "LlavaQwenForCausalLM": original_llava,
    "Qwen2VLForConditionalGeneration": qwen2_vl,
    "Qwen2_5_VLForConditionalGeneration": qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": qwen3_vl,
}


def load_media_config(model_path: str | Path) -> MediaConfig | None:
    """Read a model directory; None = a text-only model.

    Raises:
        ConfigError: no such directory, or a field is missing, wrong or asks for what is not supported.
    """
    path = Path(model_path)
    config = read_json_object(path / "config.json", required=True)
    reader = _READERS.get((config.get("architectures") or ["?"])[0])
    if reader is None:
        return None
    try:
        return reader(read_model_folder(path), text_config(config))
    except KeyError as fault:
        raise ConfigError(f"{path}/config.json has no {fault.args[0]!r}") from fault
    except (TypeError, ValueError, AttributeError) as fault:
        raise ConfigError(f"{path}: config.json or a processor's settings have a wrong value: {fault}") from fault

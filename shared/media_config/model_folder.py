"""The files of a model's directory that configure images and videos, whichever release of transformers wrote them.

transformers 5 nests the processors' settings in processor_config.json; before, each had a file. Read by the families'
readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from shared.errors import ConfigError
from shared.json_file import read_json_object
from shared.media_config.settings import PixelScale

_STEPS = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What was read, as it is; {} for a file that does not exist."""

    path: Path
    config: dict[str, Any]
    image: dict[str, Any]
    video: dict[str, Any]
    """Of videos; where nothing is said of them, what is said of images."""


def read_model_folder(path: Path) -> ModelFolder:
    """Read all of it.

    Raises:
        ConfigError: no config.json, a file is no JSON object, or settings turn off a step that all models here need.
    """
    processor = read_json_object(path / "processor_config.json")
    image = processor.get("image_processor") or read_json_object(path / "preprocessor_config.json")
    video = processor.get("video_processor") or read_json_object(path / "video_preprocessor_config.json") or image
    for settings in (image, video):
        off = [step for step in _STEPS if settings.get(step) is False]
        if off:
            raise ConfigError(f"{path}: processors with {off[0]} = false are not supported")
    return ModelFolder(path, read_json_object(path / "config.json", required=True), image, video)


def pixel_scale(folder: ModelFolder, mean: list[float], std: list[float]) -> PixelScale:
    """The scale of images and videos, `mean` and `std` where the files do not say.

    Raises:
        ConfigError: videos have another one than images.
    """
    of_images, of_videos = (
        PixelScale(
            _three(settings.get("image_mean", mean)),
            _three(settings.get("image_std", std)),
            float(settings.get("rescale_factor", 1 / 255)),
        )
        for settings in (folder.image, folder.video)
    )
    if of_images != of_videos:
        raise ConfigError(f"{folder.path}: images and videos are scaled differently, which is not supported")
    return of_images


def added_tokens(path: Path) -> dict[str, int]:
    """Tokens beside the vocabulary proper, such as <image>, to their ids; {} without a tokenizer.json."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return {}
    try:
        return {str(token["content"]): int(token["id"]) for token in orjson.loads(file.read_bytes())["added_tokens"]}
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as fault:
        raise ConfigError(f"{file} is no tokenizer: {fault!r}") from fault


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

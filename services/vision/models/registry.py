"""Families to their encoders, and an encoder from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from services.vision.models.encoder import MAX_PATCHES, Encoder, UnloadedEncoder
from services.vision.models.llava import LlavaEncoder
from services.vision.models.parts import Place
from services.vision.models.qwen2_5_vl import Qwen2_5Vit
from services.vision.models.qwen2_vl import Qwen2Vit
from services.vision.models.qwen3_vl import Qwen3Vit
from services.vision.models.qwen_vit import QwenEncoder
from shared.checkpoint.checkpoint_names import of_vision
from shared.checkpoint.loader import load_checkpoint, load_dummy, tensor_names
from shared.checkpoint.target import Target
from shared.errors import ConfigError
from shared.log import Log
from shared.media_config import Family, MediaConfig
from shared.media_config.llava import tower_places

LoadFormat = Literal["auto", "dummy"]

_ENCODERS: dict[Family, Callable[[MediaConfig, Place, int], UnloadedEncoder]] = {
    "llava": LlavaEncoder,
    "llava_next": LlavaEncoder,
    "qwen2_vl": lambda config, place, most: QwenEncoder(config, place, Qwen2Vit(config, place), most),
    "qwen2_5_vl": lambda config, place, most: QwenEncoder(config, place, Qwen2_5Vit(config, place), most),
    "qwen3_vl": lambda config, place, most: QwenEncoder(config, place, Qwen3Vit(config, place), most),
}


def load_encoder(
    model_path: str | Path,
    config: MediaConfig,
    dtype: torch.dtype,
    device: torch.device,
    load_format: LoadFormat,
    log: Log,
    max_patches: int = MAX_PATCHES,
) -> Encoder:
    """The encoder of a checkpoint, ready.

    Args:
        load_format: dummy = random weights, the same at every start.
        max_patches: computed at once, which bounds memory.

    Raises:
        ConfigError: the weights do not fit the configuration, or are not there.
    """
    encoder = _ENCODERS[config.family](config, Place(dtype, device), max_patches)
    targets = encoder.targets()
    if load_format == "dummy":
        load_dummy(targets)
        return encoder
    for folder, part in _sources(Path(model_path), config, targets):
        load_checkpoint(folder, part, tied=False, log=log, skip=lambda name: not of_vision(name) or encoder.skips(name))
    return encoder


def _sources(folder: Path, config: MediaConfig, targets: dict[str, Target]) -> list[tuple[Path, dict[str, Target]]]:
    """Which folder has which targets: an original LLaVA checkpoint may leave its tower out."""
    tower = None if config.llava is None else config.llava.tower
    if tower is None or any(name.startswith("vision_tower.") for name in tensor_names(folder)):
        return [(folder, targets)]
    inside = {name: target for name, target in targets.items() if name.startswith("vision_tower.")}
    rest = {name: target for name, target in targets.items() if name not in inside}
    return [(folder, rest), (_tower_folder(folder, tower), inside)]


def _tower_folder(folder: Path, tower: str) -> Path:
    places = tower_places(folder, tower)
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(f"{folder} does not contain its vision tower {tower!r}: download it to {places[1]} (safetensors)")

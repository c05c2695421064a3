"""Media of LLaVA-1.5 and LLaVA-NeXT, as transformers and as the original code lay out their checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.json_file import read_json_object
from shared.media_config.model_folder import ModelFolder, added_tokens, pixel_scale
from shared.media_config.settings import ImageSettings, LlavaSettings, MediaConfig

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_BICUBIC = 3
_CLIP_LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_TOWERS = {
    "openai/clip-vit-large-patch14-336": _CLIP_LARGE,
    "openai/clip-vit-large-patch14": {**_CLIP_LARGE, "image_size": 224},
}
"""Towers that original checkpoints name: what their own config.json says."""
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
PLACEHOLDER = "<image>"
_SPARE_TOKENS = (PLACEHOLDER, "<|reserved_special_token_0|>", "<unk>", "<|endoftext|>")
_PROJECTOR = re.compile(r"mlp(\d+)x_gelu")


def llava(folder: ModelFolder, text: dict[str, Any]) -> MediaConfig:
    """LLaVA-1.5 as transformers writes it. `text`: the language model's fields."""
    image = ImageSettings(_resample(folder), pad_to_square=bool(folder.image.get("do_pad", False)))
    return _of_transformers(folder, text, image)


def llava_next(folder: ModelFolder, text: dict[str, Any]) -> MediaConfig:
    """LLaVA-NeXT as transformers writes it."""
    pinpoints = folder.config.get("image_grid_pinpoints") or folder.image.get("image_grid_pinpoints") or _PINPOINTS
    image = ImageSettings(_resample(folder), pinpoints=tuple((int(h), int(w)) for h, w in pinpoints))
    return _of_transformers(folder, text, image)


def original_llava(folder: ModelFolder, text: dict[str, Any]) -> MediaConfig:
    """Both, as the original code writes them: flat, the tower a checkpoint of its own or inside.

    There is no token for images (the code uses the number -200), so one that text does not contain stands for them.
    """
    config = folder.config
    aspect, merge = config.get("image_aspect_ratio", "square"), config.get("mm_patch_merge_type", "flat")
    _require(config, "mm_use_im_start_end", False)
    _require(config, "mm_vision_select_feature", "patch")
    if (aspect, merge) not in (("anyres", "spatial_unpad"), ("pad", "flat"), ("square", "flat")):
        raise ConfigError(
            f"config.json: image_aspect_ratio {aspect!r} with mm_patch_merge_type {merge!r} is not supported; "
            "there are anyres with spatial_unpad, and pad or square with flat"
        )
    layers = _projector_layers(config.get("mm_projector_type", "linear"))
    vision, tower = _tower(folder)
    image = ImageSettings(
        _resample(folder),
        pad_to_square=aspect == "pad",
        # The original code has the width first.
        pinpoints=tuple((int(h), int(w)) for w, h in config.get("image_grid_pinpoints", []))
        if aspect == "anyres"
        else (),
    )
    known = added_tokens(folder.path)
    spare = next((known[token] for token in _SPARE_TOKENS if token in known), config.get("pad_token_id"))
    if spare is None:
        raise ConfigError(
            f"{folder.path} has no token that could stand for images: add {PLACEHOLDER} to tokenizer.json"
        )
    settings = LlavaSettings(
        feature_layers=(int(config.get("mm_vision_select_layer", -2)),),
        keep_class_token=False,
        projector_layers=layers,
        projector_act="gelu",
        projector_bias=True,
        tower=tower,
    )
    return _media_config(
        folder, text, image, settings, vision, int(spare), None if PLACEHOLDER in known else PLACEHOLDER
    )


def tower_places(model_path: Path, tower: str) -> list[Path]:
    """Folders where a tower's own checkpoint may be: the path it is named by, or its last name near the model."""
    name = tower.rstrip("/").rpartition("/")[2]
    return [model_path / tower, model_path / name, model_path.parent / name]


def _of_transformers(folder: ModelFolder, text: dict[str, Any], image: ImageSettings) -> MediaConfig:
    config = folder.config
    layers = config.get("vision_feature_layer", -2)
    strategy = config.get("vision_feature_select_strategy", "default")
    settings = LlavaSettings(
        feature_layers=tuple(layers) if isinstance(layers, list) else (int(layers),),
        keep_class_token=strategy == "full",
        projector_layers=2,
        projector_act=config.get("projector_hidden_act", "gelu"),
        projector_bias=bool(config.get("multimodal_projector_bias", True)),
    )
    token = config.get("image_token_index", config.get("image_token_id", 32000))
    vision = _CLIP_LARGE | (config.get("vision_config") or {})
    return _media_config(folder, text, image, settings, vision, int(token), None)


def _media_config(
    folder: ModelFolder,
    text: dict[str, Any],
    image: ImageSettings,
    settings: LlavaSettings,
    vision: dict[str, Any],
    token: int,
    placeholder: str | None,
) -> MediaConfig:
    kind = vision.get("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ConfigError(f"config.json: a vision tower of type {kind!r} is not supported, only clip_vision_model")
    _check_sides(folder, int(vision["image_size"]), image)
    if image.pinpoints and settings.keep_class_token:
        raise ConfigError("config.json: vision_feature_select_strategy 'full' is not supported where images are tiled")
    return MediaConfig(
        family="llava_next" if image.pinpoints else "llava",
        hidden_size=int(text["hidden_size"]),
        image_token_id=token,
        video_token_id=None,
        vision_start_token_id=None,
        vision_end_token_id=None,
        placeholder=placeholder,
        patch_size=int(vision["patch_size"]),
        merge_size=1,
        temporal_patch_size=1,
        vision=vision,
        pixels=pixel_scale(folder, _CLIP_MEAN, _CLIP_STD),
        image=image,
        video=None,
        llava=settings,
    )


def _check_sides(folder: ModelFolder, side: int, image: ImageSettings) -> None:
    """The tower sees squares of one size: processors must make such, and canvases be cut into such."""
    for name in ("size", "crop_size"):
        value = folder.image.get(name, side)
        sides = set(value.values()) if isinstance(value, dict) else {value}
        if sides != {side}:
            raise ConfigError(f"preprocessor_config.json: {name} {value} is not the {side} that the vision tower takes")
    for height, width in image.pinpoints:
        if height % side or width % side:
            raise ConfigError(f"image_grid_pinpoints: {height} x {width} cannot be cut into tiles of {side}")


def _tower(folder: ModelFolder) -> tuple[dict[str, Any], str]:
    """The fields of the tower that the configuration names, and the name."""
    name = folder.config.get("mm_vision_tower") or folder.config.get("vision_tower")
    if not name:
        raise ConfigError("config.json: mm_vision_tower is missing: which vision tower does the model have?")
    for place in tower_places(folder.path, name):
        if own := read_json_object(place / "config.json"):
            return _CLIP_LARGE | (own.get("vision_config") or own), name
    if name not in _TOWERS:
        known = ", ".join(_TOWERS)
        raise ConfigError(
            f"config.json: the vision tower {name!r} is neither a folder with a config.json nor one of {known}"
        )
    return _TOWERS[name], name


def _projector_layers(kind: str) -> int:
    found = _PROJECTOR.fullmatch(kind)
    if kind != "linear" and found is None:
        raise ConfigError(f"config.json: mm_projector_type {kind!r} is not supported, only linear and mlp<N>x_gelu")
    return int(found[1]) if found else 1


def _resample(folder: ModelFolder) -> int:
    return int(folder.image.get("resample", _BICUBIC))


def _require(config: dict[str, Any], field: str, value: object) -> None:
    if config.get(field, value) != value:
        raise ConfigError(f"config.json: {field} {config[field]!r} is not supported, only {value!r}")

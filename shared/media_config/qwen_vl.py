"""Media of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, videos, positions of three dimensions."""

from __future__ import annotations

from typing import Any

from shared.media_config.model_folder import ModelFolder, pixel_scale
from shared.media_config.settings import Family, ImageSettings, MediaConfig, VideoSettings

_CLIP_SCALE = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_HALF_SCALE = [0.5] * 3, [0.5] * 3
_BICUBIC = 3
_IDS = {
    "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
}  # fmt: skip
_TOWER = {"in_channels": 3, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_QWEN2 = {**_TOWER, "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_act": "quick_gelu"}
_QWEN2_5 = {
    **_TOWER, "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "hidden_act": "silu", "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 4,
}  # fmt: skip
_QWEN3 = {
    **_TOWER, "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "hidden_act": "gelu_pytorch_tanh",
    "patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip
_QWEN2_AREAS = (56 * 56, 28 * 28 * 1280), (128 * 28 * 28, 28 * 28 * 768)
"""Least and most pixels of an image, then of a frame, when the files do not say."""
_QWEN3_AREAS = (56 * 56, 28 * 28 * 1280), (128 * 32 * 32, 32 * 32 * 768)
_VIDEO_TOKENS = {"qwen2_vl": 128000, "qwen2_5_vl": 128000, "qwen3_vl": 768}
"""`max_video_tokens` when the files do not say: of a context, and of a frame."""


def qwen2_vl(folder: ModelFolder, text: dict[str, Any]) -> MediaConfig:
    """`text`: the language model's fields."""
    return _media_config("qwen2_vl", folder, text, _QWEN2 | {"hidden_size": text["hidden_size"]}, _QWEN2_AREAS)


def qwen2_5_vl(folder: ModelFolder, text: dict[str, Any]) -> MediaConfig:
    """`text`: the language model's fields."""
    return _media_config("qwen2_5_vl", folder, text, _QWEN2_5 | {"out_hidden_size": text["hidden_size"]}, _QWEN2_AREAS)


def qwen3_vl(folder: ModelFolder, text: dict[str, Any]) -> MediaConfig:
    """`text`: the language model's fields."""
    return _media_config("qwen3_vl", folder, text, _QWEN3 | {"out_hidden_size": text["hidden_size"]}, _QWEN3_AREAS)


def _media_config(
    family: Family,
    folder: ModelFolder,
    text: dict[str, Any],
    defaults: dict[str, Any],
    areas: tuple[tuple[int, int], tuple[int, int]],
) -> MediaConfig:
    vision = defaults | (folder.config.get("vision_config") or {})
    ids = _IDS | folder.config
    (min_pixels, max_pixels), video = _area(folder.image, areas[0]), folder.video
    frame_min, frame_max = _area(video, areas[1])
    capped = bool(video.get("cap_pixels_per_frame"))
    return MediaConfig(
        family=family,
        hidden_size=int(text["hidden_size"]),
        image_token_id=int(ids["image_token_id"]),
        video_token_id=int(ids["video_token_id"]),
        vision_start_token_id=int(ids["vision_start_token_id"]),
        vision_end_token_id=int(ids["vision_end_token_id"]),
        placeholder=None,
        patch_size=int(vision["patch_size"]),
        merge_size=int(vision["spatial_merge_size"]),
        temporal_patch_size=int(vision["temporal_patch_size"]),
        vision=vision,
        pixels=pixel_scale(folder, *(_HALF_SCALE if family == "qwen3_vl" else _CLIP_SCALE)),
        image=ImageSettings(int(folder.image.get("resample", _BICUBIC)), min_pixels, max_pixels),
        video=VideoSettings(
            resample=int(video.get("resample", _BICUBIC)),
            min_pixels=frame_min,
            max_pixels=frame_max,
            fps=float(video.get("fps") or 2.0),
            min_frames=int(video.get("min_frames", 4)),
            max_frames=int(video.get("max_frames", 768)),
            max_tokens=int(video.get("max_video_tokens", _VIDEO_TOKENS[family])) if capped else None,
        ),
        deepstack_levels=len(vision.get("deepstack_visual_indexes", ())),
        mrope=True,
        tokens_per_second=float(vision["tokens_per_second"]) if family == "qwen2_5_vl" else None,
    )


def _area(settings: dict[str, Any], fallback: tuple[int, int]) -> tuple[int, int]:
    """Least and most pixels, in whichever of their spellings."""
    size = settings.get("size") or {}
    least = settings.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or fallback[0]
    most = settings.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or fallback[1]
    return int(least), int(most)

"""What vision-language checkpoints say about images and videos, in every spelling of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.media_config import MediaConfig, load_media_config

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
QWEN2_VL = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": 1536,
    "image_token_id": 7, "video_token_id": 8, "vision_start_token_id": 5, "vision_end_token_id": 6,
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "in_chans": 3, "spatial_patch_size": 14},
}  # fmt: skip
QWEN2_5_VL = {**QWEN2_VL, "architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {"depth": 32}}
QWEN3_VL = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "text_config": {"hidden_size": 64, "model_type": "qwen3_vl_text"},
    "vision_config": {"deepstack_visual_indexes": [5, 11, 17], "patch_size": 16},
}  # fmt: skip
LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 32000, "vision_feature_layer": -2,
    "text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model", "image_size": 336},
}  # fmt: skip
LLAVA_NEXT = {**LLAVA, "architectures": ["LlavaNextForConditionalGeneration"]}
ORIGINAL = {
    "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "hidden_size": 4096,
    "image_aspect_ratio": "anyres", "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672]],
    "mm_patch_merge_type": "spatial_unpad", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "pad_token_id": 0,
}  # fmt: skip


def load(folder: Path, config: dict[str, Any], **files: object) -> MediaConfig:
    """`files`: contents by name without .json"""
    for name, content in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    found = load_media_config(folder)
    assert found is not None
    return found


def test_a_text_only_model_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert load_media_config(tmp_path) is None


def test_a_directory_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_media_config(tmp_path)


def test_qwen2_vl_as_on_the_hub(tmp_path: Path) -> None:
    image = {"min_pixels": 3136, "max_pixels": 12845056, "image_mean": CLIP_MEAN, "patch_size": 14}
    config = load(tmp_path, QWEN2_VL, preprocessor_config=image)
    assert (config.family, config.hidden_size, config.width, config.mrope) == ("qwen2_vl", 1536, 1536, True)
    assert (config.image_token_id, config.video_token_id) == (7, 8)
    assert (config.vision_start_token_id, config.vision_end_token_id) == (5, 6)
    assert (config.patch_size, config.merge_size, config.temporal_patch_size) == (14, 2, 2)
    assert (config.image.min_pixels, config.image.max_pixels, config.image.resample) == (3136, 12845056, 3)
    assert config.video is not None
    assert (config.video.min_pixels, config.video.max_pixels, config.video.max_tokens) == (3136, 12845056, None)
    assert config.pixels.mean == CLIP_MEAN
    assert config.placeholder is config.llava is config.tokens_per_second is None
    assert config.vision["mlp_ratio"] == 4


@pytest.mark.parametrize(
    "image",
    [
        {"min_pixels": 100, "max_pixels": 200},
        {"size": {"shortest_edge": 100, "longest_edge": 200}},
        {"size": {"min_pixels": 100, "max_pixels": 200}},
        {"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 100, "max_pixels": 200},
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_limits_of_images_in_every_spelling(tmp_path: Path, image: dict[str, Any], nested: bool) -> None:
    files = {"processor_config": {"image_processor": image}} if nested else {"preprocessor_config": image}
    config = load(tmp_path, QWEN2_VL, **files)
    assert (config.image.min_pixels, config.image.max_pixels) == (100, 200)


@pytest.mark.parametrize("nested", [False, True])
def test_videos_have_settings_of_their_own(tmp_path: Path, nested: bool) -> None:
    video = {
        "size": {"shortest_edge": 10, "longest_edge": 20},
        "fps": 1,
        "max_frames": 16,
        "cap_pixels_per_frame": True,
    }
    files = {"processor_config": {"video_processor": video}} if nested else {"video_preprocessor_config": video}
    found = load(tmp_path, QWEN3_VL, **files).video
    assert found is not None
    assert (found.min_pixels, found.max_pixels, found.fps, found.max_frames, found.max_tokens) == (10, 20, 1.0, 16, 768)


def test_without_files_the_families_have_their_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, QWEN2_VL)
    assert (config.image.max_pixels, config.pixels.mean) == (28 * 28 * 1280, CLIP_MEAN)
    assert config.video is not None
    assert (config.video.max_pixels, config.video.fps, config.video.min_frames) == (28 * 28 * 768, 2.0, 4)
    assert load(tmp_path, QWEN3_VL).pixels.mean == (0.5, 0.5, 0.5)


def test_qwen2_5_vl_has_positions_in_time(tmp_path: Path) -> None:
    config = load(tmp_path, QWEN2_5_VL)
    assert (config.family, config.tokens_per_second) == ("qwen2_5_vl", 4.0)
    assert config.vision["out_hidden_size"] == 1536


def test_qwen3_vl_has_embeddings_for_several_layers(tmp_path: Path) -> None:
    config = load(tmp_path, QWEN3_VL)
    assert (config.family, config.deepstack_levels, config.width) == ("qwen3_vl", 3, 64 * 4)
    assert (config.image_token_id, config.patch_size) == (151655, 16)


@pytest.mark.parametrize("name", ["preprocessor_config", "processor_config"])
def test_llava_as_on_the_hub(tmp_path: Path, name: str) -> None:
    image = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "image_mean": CLIP_MEAN}
    config = load(tmp_path, LLAVA, **{name: image if name == "preprocessor_config" else {"image_processor": image}})
    assert (config.family, config.hidden_size, config.image_token_id, config.mrope) == ("llava", 4096, 32000, False)
    assert config.video is None
    assert config.llava is not None
    assert (config.llava.feature_layers, config.llava.keep_class_token, config.llava.projector_layers) == (
        (-2,),
        False,
        2,
    )
    assert (config.patch_size, config.merge_size, config.vision["num_hidden_layers"]) == (14, 1, 24)


def test_llava_next_has_canvases(tmp_path: Path) -> None:
    config = load(tmp_path, {**LLAVA_NEXT, "image_grid_pinpoints": [[336, 672], [1008, 336]]})
    assert (config.family, config.image.pinpoints) == ("llava_next", ((336, 672), (1008, 336)))
    assert len(load(tmp_path, LLAVA_NEXT).image.pinpoints) == 5


def test_the_original_layout_has_the_width_of_canvases_first_and_a_spare_token(tmp_path: Path) -> None:
    config = load(tmp_path, {**ORIGINAL, "image_grid_pinpoints": [[336, 672], [1008, 336]]})
    assert (config.family, config.image.pinpoints) == ("llava_next", ((672, 336), (336, 1008)))
    assert (config.image_token_id, config.placeholder) == (0, "<image>")
    assert config.llava is not None
    assert (config.llava.tower, config.llava.projector_layers) == ("openai/clip-vit-large-patch14-336", 2)


@pytest.mark.parametrize(
    ("tokens", "token", "placeholder"),
    [
        ({"<image>": 9, "<unk>": 1}, 9, None),
        ({"<|reserved_special_token_0|>": 128002, "<unk>": 1}, 128002, "<image>"),
        ({"<s>": 2}, 0, "<image>"),
    ],
)
def test_the_original_layout_takes_a_token_that_text_does_not_contain(
    tmp_path: Path, tokens: dict[str, int], token: int, placeholder: str | None
) -> None:
    added = [{"content": content, "id": number} for content, number in tokens.items()]
    config = load(tmp_path, ORIGINAL, tokenizer={"added_tokens": added})
    assert (config.image_token_id, config.placeholder) == (token, placeholder)


@pytest.mark.parametrize(("aspect", "padded"), [("pad", True), ("square", False)])
def test_the_original_layout_of_llava_1_5_is_one_square(tmp_path: Path, aspect: str, padded: bool) -> None:
    config = load(tmp_path, {**ORIGINAL, "image_aspect_ratio": aspect, "mm_patch_merge_type": "flat"})
    assert (config.family, config.image.pad_to_square, config.image.pinpoints) == ("llava", padded, ())


@pytest.mark.parametrize(
    ("config", "files", "complaint"),
    [
        (
            {**LLAVA, "vision_config": {"model_type": "siglip_vision_model"}},
            {},
            "'siglip_vision_model' is not supported",
        ),
        ({**LLAVA, "text_config": {"model_type": "gemma"}}, {}, "'gemma' is not supported"),
        (
            LLAVA,
            {"preprocessor_config": {"size": {"shortest_edge": 224}}},
            "is not the 336 that the vision tower takes",
        ),
        (LLAVA, {"preprocessor_config": {"do_normalize": False}}, "do_normalize = false"),
        (LLAVA, {"preprocessor_config": {"image_mean": [1, 2]}}, "wrong value"),
        ({**LLAVA_NEXT, "image_grid_pinpoints": [[300, 336]]}, {}, "300 x 336 cannot be cut into tiles of 336"),
        (
            {**LLAVA_NEXT, "vision_feature_select_strategy": "full"},
            {},
            "'full' is not supported where images are tiled",
        ),
        (
            {**ORIGINAL, "mm_patch_merge_type": "flat"},
            {},
            "image_aspect_ratio 'anyres' with mm_patch_merge_type 'flat'",
        ),
        ({**ORIGINAL, "image_aspect_ratio": "anyres_max_9"}, {}, "'anyres_max_9'"),
        ({**ORIGINAL, "mm_projector_type": "resampler"}, {}, "'resampler' is not supported"),
        ({**ORIGINAL, "mm_vision_tower": "some/tower"}, {}, "'some/tower' is neither"),
        ({**ORIGINAL, "mm_vision_tower": None}, {}, "mm_vision_tower is missing"),
        ({**ORIGINAL, "mm_use_im_start_end": True}, {}, "mm_use_im_start_end True"),
        ({**ORIGINAL, "pad_token_id": None}, {}, "no token that could stand for images"),
        (ORIGINAL, {"tokenizer": []}, "is no tokenizer"),
        ({key: value for key, value in QWEN2_VL.items() if key != "hidden_size"}, {}, "no 'hidden_size'"),
        (QWEN2_VL, {"video_preprocessor_config": {"image_mean": [0, 0, 0]}}, "scaled differently"),
        (QWEN2_VL, {"preprocessor_config": {"size": 3}}, "wrong value"),
    ],
)
def test_what_is_not_supported_or_wrong_is_said(
    tmp_path: Path, config: dict[str, Any], files: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path, config, **files)

"""Vision-language models of real size without weights (`--load-format dummy`), around a tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tests.fakes.vlm_checkpoints import (
    CLIP_MEAN,
    CLIP_STD,
    LLAVA_TEMPLATE,
    QWEN_TEMPLATE,
    TOKEN_IDS,
    write_tokenizer,
)

_QWEN_TOKENS = {
    "image_token_id": TOKEN_IDS["<|image_pad|>"], "video_token_id": TOKEN_IDS["<|video_pad|>"],
    "vision_start_token_id": TOKEN_IDS["<|vision_start|>"], "vision_end_token_id": TOKEN_IDS["<|vision_end|>"],
}  # fmt: skip
_QWEN_PIXELS = {
    "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14,
    "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
}  # fmt: skip
_CLIP_PIXELS = {
    "image_processor_type": "LlavaNextImageProcessor", "do_resize": True, "do_center_crop": True, "do_rescale": True,
    "do_normalize": True, "do_convert_rgb": True, "do_pad": True, "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336}, "resample": 3, "rescale_factor": 1 / 255, "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
}  # fmt: skip


def _qwen2_vl(text: dict[str, Any], vision: dict[str, Any], sections: list[int]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        "rope_scaling": {"type": "mrope", "mrope_section": sections}, "torch_dtype": "bfloat16",
        "eos_token_id": TOKEN_IDS["<|im_end|>"], "bos_token_id": TOKEN_IDS["<|endoftext|>"], **_QWEN_TOKENS, **text,
        "vision_config": {
            "model_type": "qwen2_vl", "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "temporal_patch_size": 2, "mlp_ratio": 4, "hidden_size": text["hidden_size"],
            **vision,
        },
    }  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2-VL-7B": _qwen2_vl(
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064},
        {"depth": 32, "embed_dim": 1280, "num_heads": 16}, [16, 24, 24],
    ),
    "LLaVA-NeXT-8B": {
        "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next", "torch_dtype": "bfloat16",
        "image_token_index": TOKEN_IDS["<image>"], "vision_feature_layer": -2, "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default", "image_seq_length": 576, "tie_word_embeddings": False,
        "image_grid_pinpoints": _CLIP_PIXELS["image_grid_pinpoints"],
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
        },
        "text_config": {
            "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "bos_token_id": TOKEN_IDS["<|endoftext|>"], "eos_token_id": TOKEN_IDS["<|im_end|>"],
        },
    },
    "small": _qwen2_vl(
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9,
         "num_key_value_heads": 3, "vocab_size": 32000},
        {"depth": 8, "embed_dim": 320, "num_heads": 4}, [8, 12, 12],
    ),
}  # fmt: skip
"""`small` is no published model: what two CPU cores can do in minutes."""


def write_vlm_shape(name: str, folder: Path) -> Path:
    """A directory for `--model-path`."""
    folder.mkdir(parents=True, exist_ok=True)
    qwen = SHAPES[name]["model_type"].startswith("qwen")
    write_tokenizer(folder, QWEN_TEMPLATE if qwen else LLAVA_TEMPLATE)
    (folder / "config.json").write_bytes(orjson.dumps(SHAPES[name]))
    (folder / "preprocessor_config.json").write_bytes(orjson.dumps(_QWEN_PIXELS if qwen else _CLIP_PIXELS))
    return folder

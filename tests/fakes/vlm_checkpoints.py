"""Tiny vision-language checkpoints in the layouts of the real ones, with random weights.

`vlm_checkpoint("qwen3_vl", folder)` writes everything that a directory from the hub has (weights, configurations, a
tokenizer of single bytes, the chat template, the processors' settings) and returns transformers' model of it, the
oracle. Images cost few tokens, so that whole stacks can be tested on a CPU. Called by tests only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedModel
from transformers.models.llava import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava_next import LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen3_vl import Qwen3VLConfig, Qwen3VLForConditionalGeneration

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<image>",
)  # fmt: skip
TOKEN_IDS = {token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)}
VOCAB_SIZE = 272
CONTEXT_LENGTH = 2048
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
"""(height, width) of what LLaVA-NeXT cuts into tiles of 56."""
FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")

QWEN_TEMPLATE = """\
{% for message in messages %}\
{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}\
<|im_start|>{{ message.role }}\n\
{% if message.content is string %}{{ message.content }}\
{% else %}{% for part in message.content %}\
{% if part.type == 'image' or 'image' in part or 'image_url' in part %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part.type == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in part %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>\n\
{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
LLAVA_TEMPLATE = """\
{% for message in messages %}\
{% if message.role != 'system' %}{{ message.role | upper }}: {% endif %}\
{% if message.content is string %}{{ message.content }} \
{% else %}\
{% for part in message.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}\
{% for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text }} {% endfor %}\
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def vlm_checkpoint(family: str, folder: str | Path, *, seed: int = 0) -> tuple[Path, PreTrainedModel]:
    """Write a checkpoint of `family` (one of FAMILIES) into `folder`.

    Returns:
        The folder, and transformers' model as reloaded from it: float32, on the CPU, in evaluation mode.
    """
    path = Path(folder)
    build, cls = _BUILDERS[family]
    torch.manual_seed(seed)
    model = cls(build())
    _spread(model)
    model.generation_config = GenerationConfig(eos_token_id=TOKEN_IDS["<|im_end|>"], do_sample=False)
    model.save_pretrained(path)
    write_tokenizer(path, QWEN_TEMPLATE if family.startswith("qwen") else LLAVA_TEMPLATE)
    for name, content in _processor_files(family).items():
        (path / name).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return path, cls.from_pretrained(path, dtype=torch.float32).eval()


def write_tokenizer(path: Path, chat_template: str, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> None:
    """A token per byte, the special tokens after them, and the template in its own file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONTEXT_LENGTH,
    }
    (path / "tokenizer_config.json").write_bytes(orjson.dumps(settings))
    (path / "chat_template.jinja").write_text(chat_template)


def _spread(model: PreTrainedModel) -> None:
    """Weights large enough that every part of the model matters to its output."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = weight.dim() == 1 and name.endswith("weight")
            weight.normal_(1.0 if norm else 0.0, 0.1)


def _text(model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "eos_token_id": TOKEN_IDS["<|im_end|>"],
        "bos_token_id": TOKEN_IDS["<|endoftext|>"],
        **more,
    }


def _clip() -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 16,
    }


def _llava() -> LlavaConfig:
    return LlavaConfig(
        vision_config=_clip(), text_config=_text("llama"), image_token_index=TOKEN_IDS["<image>"], image_seq_length=16
    )


def _llava_next() -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=_clip(),
        text_config=_text("mistral", sliding_window=None),
        image_token_index=TOKEN_IDS["<image>"],
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
    )


def _qwen(cls: Callable[..., Any], text: dict[str, Any], vision: dict[str, Any]) -> Any:
    return cls(
        text_config=text,
        vision_config=vision,
        image_token_id=TOKEN_IDS["<|image_pad|>"],
        video_token_id=TOKEN_IDS["<|video_pad|>"],
        vision_start_token_id=TOKEN_IDS["<|vision_start|>"],
        vision_end_token_id=TOKEN_IDS["<|vision_end|>"],
    )


def _qwen2_vl() -> Qwen2VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return _qwen(Qwen2VLConfig, _text("qwen2_vl_text", rope_parameters=rope), vision)


def _qwen2_5_vl() -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]}
    vision = {
        "depth": 4, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48,
        "window_size": 112, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2,
    }  # fmt: skip
    return _qwen(Qwen2_5_VLConfig, _text("qwen2_5_vl_text", rope_parameters=rope), vision)


def _qwen3_vl() -> Qwen3VLConfig:
    rope = {
        "rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
    }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48,
        "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2],
    }  # fmt: skip
    return _qwen(Qwen3VLConfig, _text("qwen3_vl_text", head_dim=16, rope_parameters=rope), vision)


_BUILDERS: dict[str, tuple[Callable[[], Any], Callable[[Any], PreTrainedModel]]] = {
    "llava": (_llava, LlavaForConditionalGeneration),
    "llava_next": (_llava_next, LlavaNextForConditionalGeneration),
    "qwen2_vl": (_qwen2_vl, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (_qwen2_5_vl, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (_qwen3_vl, Qwen3VLForConditionalGeneration),
}


def _processor_files(family: str) -> dict[str, dict[str, Any]]:
    """The settings' files, laid out as in the real checkpoints of the family."""
    return {
        "llava": functools.partial(_clip_files, "LlavaProcessor", {"image_processor_type": "CLIPImageProcessor"}),
        "llava_next": functools.partial(
            _clip_files,
            "LlavaNextProcessor",
            {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS, "do_pad": True},
        ),
        "qwen2_vl": _qwen2_files,
        "qwen2_5_vl": _qwen2_files,
        "qwen3_vl": _qwen3_files,
    }[family]()


def _clip_files(processor_class: str, more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    image = {
        "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "resample": 3,
        "rescale_factor": 1 / 255, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, **more,
    }  # fmt: skip
    processor = {
        "processor_class": processor_class, "image_token": "<image>", "patch_size": 14,
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    }  # fmt: skip
    return {"preprocessor_config.json": image, "processor_config.json": processor}


def _qwen2_files() -> dict[str, dict[str, Any]]:
    image = {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 64,
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    }  # fmt: skip
    return {"preprocessor_config.json": image}


def _qwen3_files() -> dict[str, dict[str, Any]]:
    shared = {
        "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }  # fmt: skip
    image = {
        **shared,
        "size": {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 64},
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    video = {
        **shared,
        "size": {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 96},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    return {"preprocessor_config.json": image, "video_preprocessor_config.json": video}


def original_llava_checkpoint(
    folder: str | Path, *, tower: Literal["inside", "beside"] = "inside", seed: int = 0
) -> tuple[Path, PreTrainedModel]:
    """LLaVA-NeXT as the original code lays it out: a flat config.json, other names, no image token.

    Args:
        tower: whether the vision tower's weights are among the model's or in the folder that config.json names.

    Returns:
        As `vlm_checkpoint`; the model is transformers' LLaVA-NeXT with these weights.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(_llava_next()).eval()
    _spread(model)
    weights = {_original_name(name): weight.contiguous() for name, weight in model.state_dict().items()}
    own = {name: weight for name, weight in weights.items() if ".vision_tower." in name}
    (path / "tower").mkdir()
    (path / "tower" / "config.json").write_bytes(orjson.dumps({"vision_config": _clip()}))
    if tower == "beside":
        prefix = "model.vision_tower.vision_tower."
        save_file({n.removeprefix(prefix): w for n, w in own.items()}, path / "tower" / "model.safetensors")
        weights = {name: weight for name, weight in weights.items() if name not in own}
    save_file(weights, path / "model.safetensors")
    config = {
        **_text("llava_llama"),
        "architectures": ["LlavaMistralForCausalLM"],
        "rms_norm_eps": 1e-6,
        "sliding_window": None,
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [[width, height] for height, width in PINPOINTS],
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "tower",
        "mm_use_im_start_end": False,
        "torch_dtype": "float32",
    }
    (path / "config.json").write_bytes(orjson.dumps(config))
    write_tokenizer(path, LLAVA_TEMPLATE, [token for token in SPECIAL_TOKENS if token != "<image>"])
    return path, model


def _original_name(name: str) -> str:
    """transformers' name in memory to the original code's name on disk."""
    for prefix, original in (
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(prefix):
            return original + name.removeprefix(prefix)
    return name

"""The language model of vision-language checkpoints, nested or flat, sparse or full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.model_config import ModelConfig, load_model_config

SHAPE: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
MROPE = {"mrope_section": [2, 3, 3]}
VISION = {"vision_config": {"depth": 2, "hidden_size": 7, "num_attention_heads": 1}}


def load(folder: Path, raw: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(raw))
    return load_model_config(folder)


FLAT = {**SHAPE, "model_type": "qwen2_vl", "rope_theta": 1e6}
NESTED = {**SHAPE, "model_type": "qwen2_vl_text"}


@pytest.mark.parametrize(
    "raw",
    [
        {**FLAT, "rope_scaling": {"type": "mrope", **MROPE}},
        {**FLAT, "rope_scaling": {"rope_type": "default", "type": "default", **MROPE}},
        {"text_config": {**NESTED, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default", **MROPE}}},
    ],
)
def test_qwen2_vl_is_qwen2_with_positions_of_three_dimensions(tmp_path: Path, raw: dict[str, Any]) -> None:
    config = load(
        tmp_path, {"architectures": ["Qwen2VLForConditionalGeneration"], **VISION, "dtype": "bfloat16", **raw}
    )
    assert (config.architecture, config.model_type) == ("Qwen2ForCausalLM", "qwen2")
    assert (config.rope.kind, config.rope.theta, config.rope.params["mrope_section"]) == ("default", 1e6, [2, 3, 3])
    assert (config.hidden_size, config.num_layers, config.attention_bias, config.dtype) == (64, 2, True, "bfloat16")
    assert "vision_config" not in config.raw
    assert config.raw["hidden_size"] == 64


def test_yarn_keeps_its_kind(tmp_path: Path) -> None:
    raw = {**SHAPE, "model_type": "qwen2_5_vl", "rope_scaling": {"type": "yarn", "factor": 4.0, **MROPE}}
    config = load(tmp_path, {"architectures": ["Qwen2_5_VLForConditionalGeneration"], **VISION, **raw})
    assert (config.rope.kind, config.rope.params["factor"], config.rope.params["mrope_section"]) == (
        "yarn",
        4.0,
        [2, 3, 3],
    )


def test_qwen3_vl_is_qwen3_with_alternating_frequencies(tmp_path: Path) -> None:
    rope = {"rope_theta": 5e6, "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, **MROPE}}
    text = {**SHAPE, "model_type": "qwen3_vl_text", "head_dim": 32, **rope}
    config = load(tmp_path, {"architectures": ["Qwen3VLForConditionalGeneration"], **VISION, "text_config": text})
    assert (config.architecture, config.head_dim, config.attention_bias) == ("Qwen3ForCausalLM", 32, False)
    assert config.rope.params["mrope_interleaved"] is True


@pytest.mark.parametrize(("whole", "part"), [(True, None), (False, True), (None, True), (True, False)])
def test_embeddings_are_tied_if_either_part_says_so(tmp_path: Path, whole: bool | None, part: bool | None) -> None:
    text = {**SHAPE, "model_type": "qwen3_vl_text", "tie_word_embeddings": part}
    raw = {"architectures": ["Qwen3VLForConditionalGeneration"], "text_config": text, "tie_word_embeddings": whole}
    assert load(tmp_path, raw).tie_embeddings


@pytest.mark.parametrize(
    ("text", "architecture", "intermediate", "kv_heads"),
    [
        ({"model_type": "llama", "vocab_size": 32064}, "LlamaForCausalLM", 11008, 32),
        ({"vocab_size": 32064}, "LlamaForCausalLM", 11008, 32),
        ({"model_type": "mistral", "vocab_size": 32064}, "MistralForCausalLM", 14336, 8),
    ],
)
def test_what_llava_leaves_out_is_the_default_of_its_language_model(
    tmp_path: Path, text: dict[str, Any], architecture: str, intermediate: int, kv_heads: int
) -> None:
    raw = {"architectures": ["LlavaForConditionalGeneration"], "torch_dtype": "float16", "text_config": text, **VISION}
    config = load(tmp_path, raw)
    assert (config.architecture, config.intermediate_size, config.num_kv_heads) == (
        architecture,
        intermediate,
        kv_heads,
    )
    assert (config.vocab_size, config.hidden_size, config.num_layers, config.dtype) == (32064, 4096, 32, "float16")


@pytest.mark.parametrize(
    ("architecture", "text"),
    [
        ("LlavaLlamaForCausalLM", "LlamaForCausalLM"),
        ("LlavaMistralForCausalLM", "MistralForCausalLM"),
        ("LlavaQwenForCausalLM", "Qwen2ForCausalLM"),
    ],
)
def test_the_original_llava_layout_is_flat(tmp_path: Path, architecture: str, text: str) -> None:
    config = load(tmp_path, {**SHAPE, "architectures": [architecture], "model_type": "llava_llama"})
    assert (config.architecture, config.hidden_size) == (text, 64)


def test_a_language_model_of_another_type_is_named(tmp_path: Path) -> None:
    raw = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {**SHAPE, "model_type": "gemma"}}
    with pytest.raises(ConfigError, match="'gemma' is not supported here, only llama"):
        load(tmp_path, raw)

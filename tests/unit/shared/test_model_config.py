"""Reading config.json and generation_config.json, old and new spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.model_config import ModelConfig, load_model_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip


def load(
    folder: Path, raw: object = LLAMA, generation: object | None = None, context_length: int | None = None
) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_model_config(folder, context_length)


def test_shapes_and_defaults_are_read(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.architecture, config.num_layers, config.num_q_heads, config.num_kv_heads) == (
        "LlamaForCausalLM", 2, 4, 2,
    )  # fmt: skip
    assert (config.head_dim, config.context_length, config.eos_token_ids, config.bos_token_id) == (16, 2048, (2,), 1)
    assert (config.attention_bias, config.attention_out_bias, config.mlp_bias, config.tie_embeddings) == (False,) * 4
    assert config.raw == LLAMA


def test_without_kv_heads_every_query_head_has_its_own(tmp_path: Path) -> None:
    assert load(tmp_path, {**LLAMA, "num_key_value_heads": None}).num_kv_heads == 4


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", "factor": 8.0}, "torch_dtype": "bfloat16"},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "torch_dtype": "bfloat16"},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}, "dtype": "bfloat16"},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}, "dtype": "torch.bfloat16"},
    ],
)
def test_old_and_new_spellings_mean_the_same(tmp_path: Path, spelling: dict[str, Any]) -> None:
    config = load(tmp_path, {**LLAMA, **spelling})
    assert (config.rope.theta, config.rope.kind, config.rope.params["factor"]) == (5e5, "llama3", 8.0)
    assert config.rope.params["original_max_position_embeddings"] == 2048
    assert config.dtype == "bfloat16"


def test_a_model_without_rope_fields_has_the_plain_rotation(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.rope.theta, config.rope.kind, config.dtype) == (10000.0, "default", "float32")


def test_families_differ_in_biases_and_windows(tmp_path: Path) -> None:
    qwen2 = load(tmp_path, {**LLAMA, "model_type": "qwen2", "sliding_window": 4096})
    assert (qwen2.attention_bias, qwen2.attention_out_bias, qwen2.sliding_window) == (True, False, None)
    llama = load(tmp_path, {**LLAMA, "attention_bias": True})
    assert (llama.attention_bias, llama.attention_out_bias) == (True, True)
    assert load(tmp_path, {**LLAMA, "model_type": "mistral", "sliding_window": 4096}).sliding_window == 4096


@pytest.mark.parametrize(
    ("generation", "eos"),
    [({"eos_token_id": [2, 7]}, (2, 7)), ({"eos_token_id": 7}, (7,)), ({}, (2,)), ({"eos_token_id": None}, (2,))],
)
def test_the_generation_file_decides_the_end_tokens(tmp_path: Path, generation: object, eos: tuple[int, ...]) -> None:
    assert load(tmp_path, generation=generation).eos_token_ids == eos


def test_sampling_defaults_count_only_where_the_model_wants_sampling(tmp_path: Path) -> None:
    given = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05}
    greedy = load(tmp_path, generation=given).sampling_defaults
    assert (greedy.temperature, greedy.top_p, greedy.top_k) == (1.0, 1.0, -1)
    warm = load(tmp_path, generation={**given, "do_sample": True}).sampling_defaults
    assert (warm.temperature, warm.top_p, warm.top_k, warm.repetition_penalty) == (0.6, 0.95, 20, 1.05)
    partial = load(tmp_path, generation={"do_sample": True, "temperature": None}).sampling_defaults
    assert (partial.temperature, partial.top_k) == (1.0, -1)


def test_the_context_may_be_shortened_but_not_stretched(tmp_path: Path) -> None:
    assert load(tmp_path, context_length=128).context_length == 128
    for wrong in (2049, 0, -1):
        with pytest.raises(ConfigError, match=f"--context-length {wrong}"):
            load(tmp_path, context_length=wrong)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "vocab_size"),
        ({k: v for k, v in LLAMA.items() if k != "model_type"}, "model_type"),
        ({**LLAMA, "hidden_size": "wide"}, "wide"),
        ({**LLAMA, "num_hidden_layers": None}, "config.json"),
        ({**LLAMA, "num_attention_heads": 0}, "config.json"),
        ({**LLAMA, "rope_scaling": 3}, "config.json"),
        ([], "not a JSON object"),
    ],
)
def test_a_configuration_that_is_none_is_refused_with_the_reason(tmp_path: Path, raw: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, raw)


def test_a_broken_generation_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, generation={"do_sample": True, "temperature": "hot"})


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model-path"):
        load_model_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        load_model_config(tmp_path)

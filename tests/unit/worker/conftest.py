"""Tiny random checkpoints of every family, written by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    set_seed,
)

torch.set_num_threads(1)

SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 2, "bos_token_id": 1,
    "initializer_range": 0.15, "pad_token_id": None,
}  # fmt: skip


def rope(kind: str, **params: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **params}}


FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama-untied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama-biased": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": (LlamaConfig, LlamaForCausalLM, {"head_dim": 16}),
    "llama-linear": (LlamaConfig, LlamaForCausalLM, rope("linear", factor=4.0)),
    "llama-dynamic": (LlamaConfig, LlamaForCausalLM, rope("dynamic", factor=2.0)),
    "llama-llama3": (LlamaConfig, LlamaForCausalLM, rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)),
    "llama-yarn": (LlamaConfig, LlamaForCausalLM, rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2-window": (Qwen2Config, Qwen2ForCausalLM, {
        "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2-moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 2,
        "shared_expert_intermediate_size": 40}),
    "qwen3-moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {
        "head_dim": 16, "num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
        "norm_topk_prob": True}),
    "qwen3-moe-unnormed": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {
        "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 36,
        "mlp_only_layers": [1]}),
}  # fmt: skip


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """`checkpoint(family)` gives the directory and transformers' own model."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(family: str) -> tuple[Path, Any]:
        if family not in made:
            config_class, model_class, changes = FAMILIES[family]
            set_seed(11)
            model = model_class(config_class(**{**SHAPE, **changes})).eval()
            with torch.no_grad():  # biases and norms that do nothing would hide mistakes
                for name, p in model.named_parameters():
                    if p.dim() == 1:
                        p.normal_(1.0 if "norm" in name else 0.0, 0.2)
            path = tmp_path_factory.mktemp(family)
            model.save_pretrained(path)
            made[family] = (path, model)
        return made[family]

    return get


@pytest.fixture(scope="session")
def llama(checkpoint: Callable[[str], tuple[Path, Any]]) -> tuple[Path, Any]:
    return checkpoint("llama-tied")

"""Tiny checkpoints in every format, each beside the plain one of the weights that it means."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    set_seed,
)

from tests.unit.worker.conftest import SHAPE
from tests.unit.worker.quantization.writers import CASES

_WIDE: dict[str, Any] = SHAPE | {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4,
    "num_hidden_layers": 2, "initializer_range": 0.08,
}  # fmt: skip
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
        },
    ),
}
_PRODUCT = re.compile(r"^(model\..*(?:proj|\.w[123]))\.weight$")
_TABLE = "model.embed_tokens"


def plain_checkpoint(model: str, into: Path) -> Path:
    """Random weights by transformers, an expert's for themselves."""
    config_class, model_class, changes = MODELS[model]
    set_seed(5)
    made = model_class(config_class(**{**_WIDE, **changes}))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    made.save_pretrained(into, save_original_format=True)
    return into


def quantized_checkpoint(plain: Path, case: str, quantized: Path, meant: Path) -> None:
    """Write the checkpoint `plain` in the format `case`, and the plain one of what its weights are then."""
    weights = load_file(plain / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    quantization = dict(CASES[case].config)
    codes, types = {}, {}
    for name in list(weights):
        kind = case
        if quantization["quant_method"] == "gguf" and name == f"{_TABLE}.weight":
            kind = "gguf Q8_0"  # as llama.cpp does it
        elif not _PRODUCT.match(name):
            continue
        product = name.removesuffix(".weight")
        tensors, weight = CASES[kind].write(weights[name].double().numpy())
        types[product] = kind.removeprefix("gguf ")
        weights[name] = torch.from_numpy(weight).float()
        codes |= {f"{product}.{tensor}": value.contiguous() for tensor, value in tensors.items()}
    if quantization["quant_method"] == "gguf":
        quantization["types"] = types
    shutil.copytree(plain, meant, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(plain, quantized, ignore=shutil.ignore_patterns("*.safetensors"))
    (quantized / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    save_file(weights, meant / "model.safetensors", metadata={"format": "pt"})
    kept = {name: value for name, value in weights.items() if name.removesuffix(".weight") not in types}
    save_file(kept | codes, quantized / "model.safetensors", metadata={"format": "pt"})

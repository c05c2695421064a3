"""Tiny checkpoints in every format, each beside the plain one of the weights that it means."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
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
from tests.unit.worker.quantization.writers import CASES, Rounded, Tensors, gptq_tensors

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
_PRODUCT = re.compile(r"^model\..*(?:proj|\.w[123])$")
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
    of_gguf = CASES[case].config["quant_method"] == "gguf"

    def case_of(product: str) -> str | None:
        if of_gguf and product == _TABLE:
            return "gguf Q8_0"  # as llama.cpp does it
        return case if is_inner_product(product) else None

    written = mixed_checkpoint(plain, CASES[case].config, case_of, quantized, meant)
    if of_gguf:
        config = json.loads((quantized / "config.json").read_text())
        config["quantization_config"]["types"] = {name: kind.removeprefix("gguf ") for name, kind in written.items()}
        (quantized / "config.json").write_text(json.dumps(config))


def is_inner_product(product: str) -> bool:
    """Whether it is one of those that every tool quantizes."""
    return bool(_PRODUCT.match(product))


def mixed_checkpoint(
    plain: Path,
    quantization: dict[str, Any],
    case_of: Callable[[str], str | None],
    quantized: Path,
    meant: Path,
) -> dict[str, str]:
    """Write the checkpoint `plain` with each product in a format of its own, and the plain one that it means.

    Args:
        quantization: what config.json is to say of all.
        case_of: the format of what has a weight of this name; None = plain.

    Returns:
        The format of each product that has one.
    """
    weights = load_file(plain / "model.safetensors")
    codes, written = {}, {}
    for name in list(weights):
        product = name.removesuffix(".weight")
        if product == name or (case := case_of(product)) is None:
            continue
        tensors, weight = CASES[case].write(weights[name].double().numpy())
        written[product] = case
        weights[name] = torch.from_numpy(weight).float()
        codes |= {f"{product}.{tensor}": value.contiguous() for tensor, value in tensors.items()}
    _write_both(plain, weights, codes, quantization, quantized, meant)
    return written


def rounded_checkpoint(plain: Path, products: Mapping[str, Rounded], quantized: Path, meant: Path) -> None:
    """Write the checkpoint `plain` with these products of 4 bits as GPTQ's, and the plain one that it means."""
    weights = load_file(plain / "model.safetensors")
    codes = {}
    for name, product in products.items():
        weights[f"{name}.weight"] = torch.from_numpy(product.weight()).float()
        codes |= {f"{name}.{tensor}": value.contiguous() for tensor, value in gptq_tensors(product, 4, 1).items()}
    group = next(iter(products.values()))
    config = {"quant_method": "gptq", "bits": 4, "group_size": len(group.g_idx) // group.scales.shape[1]}
    _write_both(plain, weights, codes, config | {"desc_act": True, "sym": False}, quantized, meant)


def _write_both(
    plain: Path, weights: Tensors, codes: Tensors, quantization: dict[str, Any], quantized: Path, meant: Path
) -> None:  # fmt: skip
    """
    Args:
        weights: of all names, with the values that codes mean.
        codes: the tensors of packed products.
        quantization: what config.json is to say of them.
    """
    config = json.loads((plain / "config.json").read_text())
    written = {name.rsplit(".", 1)[0] for name in codes}
    shutil.copytree(plain, meant, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(plain, quantized, ignore=shutil.ignore_patterns("*.safetensors"))
    (quantized / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    save_file(weights, meant / "model.safetensors", metadata={"format": "pt"})
    kept = {name: value for name, value in weights.items() if name.removesuffix(".weight") not in written}
    save_file(kept | codes, quantized / "model.safetensors", metadata={"format": "pt"})

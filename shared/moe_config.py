"""Mixture-of-experts fields of config.json: which layers have experts, and their shape.

Reads the spellings of Mixtral, Qwen2-MoE and Qwen3-MoE, those on the hub and those that transformers 5 writes. Part of
`model_config.py`, without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import ConfigError

_FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Experts of the sparse layers; the other layers keep the dense MLP of `ModelConfig.intermediate_size`."""

    num_experts: int
    top_k: int
    """Experts that each token goes to."""
    intermediate_size: int
    """Of one expert."""
    renormalize: bool
    """The weights of a token's experts sum to 1."""
    shared_intermediate_size: int
    """Of the expert that every token goes to (Qwen2-MoE); 0 = there is none."""
    layers: frozenset[int]
    """Layers that have experts."""


def moe_config(raw: Mapping[str, Any]) -> MoeConfig | None:
    """The experts that config.json describes; None for a dense model and for families that are not known here.

    Raises:
        ConfigError: the fields contradict each other.
        KeyError: a required field is missing.
    """
    num_experts = int(raw.get("num_experts") or raw.get("num_local_experts") or 0)
    if raw["model_type"] not in _FAMILIES or not num_experts:
        return None
    mixtral = raw["model_type"] == "mixtral"
    top_k = int(raw["num_experts_per_tok"])
    if not 0 < top_k <= num_experts:
        raise ConfigError(
            f"config.json: num_experts_per_tok {top_k} must be in 1..{num_experts}, the experts there are"
        )
    return MoeConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=_positive(raw, "intermediate_size" if mixtral else "moe_intermediate_size"),
        renormalize=mixtral or bool(raw.get("norm_topk_prob", False)),
        shared_intermediate_size=int(raw.get("shared_expert_intermediate_size") or 0),
        layers=_sparse_layers(raw),
    )


def _sparse_layers(raw: Mapping[str, Any]) -> frozenset[int]:
    """Every `decoder_sparse_step`-th layer, without those of `mlp_only_layers`."""
    num_layers, step = int(raw["num_hidden_layers"]), int(raw.get("decoder_sparse_step", 1))
    if step < 1:
        raise ConfigError(f"config.json: decoder_sparse_step {step} must be at least 1")
    dense = {int(layer) for layer in raw.get("mlp_only_layers") or ()}
    foreign = sorted(layer for layer in dense if not 0 <= layer < num_layers)
    if foreign:
        raise ConfigError(f"config.json: mlp_only_layers names layer {foreign[0]}, there are 0..{num_layers - 1}")
    return frozenset(range(step - 1, num_layers, step)) - dense


def _positive(raw: Mapping[str, Any], name: str) -> int:
    value = int(raw[name])
    if value < 1:
        raise ConfigError(f"config.json: {name} {value} must be at least 1")
    return value

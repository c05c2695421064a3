"""Hyper-parameters of a checkpoint in Hugging Face format, read without torch.

Reads config.json (spellings of transformers 4 and 5) and generation_config.json. Used by the tokenizer (context
length, EOS, sampling defaults) and by the worker (shapes). Of a vision-language checkpoint the language model is read
(`text_config.py`); the rest is in `media_config`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.json_file import read_json_object
from shared.moe_config import MoeConfig, moe_config
from shared.sampling import NEUTRAL, SamplingParams
from shared.text_config import text_config


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Rotary embedding: base and, for long-context models, how frequencies are stretched."""

    theta: float = 10000.0
    kind: str = "default"
    """default, linear, dynamic, llama3 or yarn."""
    params: dict[str, Any] = field(default_factory=dict)
    """factor, low_freq_factor, high_freq_factor, original_max_position_embeddings, ...

    With positions of three dimensions: `mrope_section`, how many frequencies turn by time, height and width, and
    `mrope_interleaved`, whether they alternate instead of following each other.
    """


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and switches of a decoder-only model."""

    architecture: str
    """First entry of `architectures`, for example LlamaForCausalLM; of a vision-language model that of its text-only
    sibling."""
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    rope: RopeScaling
    tie_embeddings: bool
    attention_bias: bool
    attention_out_bias: bool
    mlp_bias: bool
    hidden_act: str
    sliding_window: int | None
    dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    sampling_defaults: SamplingParams
    moe: MoeConfig | None
    """None: every layer is dense."""
    raw: dict[str, Any]
    """config.json as it is (of a vision-language model the language model's part), for families with fields of their
    own."""


def load_model_config(model_path: str | Path, context_length: int | None = None) -> ModelConfig:
    """Read the configuration of a model directory.

    Args:
        model_path: directory with config.json.
        context_length: overrides the model's own; may not exceed it.

    Raises:
        ConfigError: no such directory, unreadable JSON, a required field is missing, or `context_length` too long.
    """
    folder = Path(model_path)
    raw = read_json_object(folder / "config.json", required=True)
    generation = read_json_object(folder / "generation_config.json")
    try:
        return _build(text_config(raw), generation, context_length)
    except KeyError as fault:
        raise ConfigError(f"{folder}/config.json has no {fault.args[0]!r}: not a decoder-only checkpoint?") from fault
    except (TypeError, ValueError, ArithmeticError, AttributeError) as fault:
        raise ConfigError(f"{folder}/config.json or generation_config.json has a wrong value: {fault}") from fault


def _build(raw: dict[str, Any], generation: dict[str, Any], context_length: int | None) -> ModelConfig:
    num_q_heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
    longest = int(raw.get("max_position_embeddings", 2048))
    if context_length is not None and not 0 < context_length <= longest:
        raise ConfigError(f"--context-length {context_length} must be in 1..{longest}, what the model was trained for")
    model_type = raw["model_type"]
    qwen2 = model_type in ("qwen2", "qwen2_moe")
    use_window = bool(raw.get("use_sliding_window", not model_type.startswith("qwen")))
    eos = generation.get("eos_token_id")
    eos = raw.get("eos_token_id") if eos is None else eos
    return ModelConfig(
        architecture=(raw.get("architectures") or ["?"])[0],
        model_type=model_type,
        vocab_size=int(raw["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_q_heads=num_q_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_q_heads),
        head_dim=int(raw.get("head_dim") or hidden // num_q_heads),
        context_length=context_length or longest,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=_rope(raw),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", raw.get("qkv_bias", qwen2))),
        attention_out_bias=bool(raw.get("attention_bias", False)) and not qwen2,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        hidden_act=raw.get("hidden_act", "silu"),
        sliding_window=raw.get("sliding_window") if use_window else None,
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
        bos_token_id=raw.get("bos_token_id"),
        sampling_defaults=_sampling_defaults(generation),
        moe=moe_config(raw),
        raw=raw,
    )


def _rope(raw: dict[str, Any]) -> RopeScaling:
    params = dict(raw.get("rope_parameters") or {})
    scaling = dict(raw.get("rope_scaling") or {})
    theta = float(params.pop("rope_theta", raw.get("rope_theta", 10000.0)))
    merged = {**scaling, **params}
    kind = merged.pop("rope_type", merged.pop("type", "default"))
    merged.pop("type", None)
    if kind == "mrope":  # what older files call the plain frequencies of positions of three dimensions
        kind = "default"
    merged.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings", 2048))
    return RopeScaling(theta=theta, kind=kind, params=merged)


def _sampling_defaults(generation: dict[str, Any]) -> SamplingParams:
    def given(name: str, fallback: Any) -> Any:
        value = generation.get(name)
        return fallback if value is None or not math.isfinite(value) else value

    if not generation.get("do_sample", False):
        return NEUTRAL
    return SamplingParams(
        temperature=float(given("temperature", 1.0)),
        top_p=float(given("top_p", 1.0)),
        top_k=int(given("top_k", -1)),
        min_p=float(given("min_p", 0.0)),
        repetition_penalty=float(given("repetition_penalty", 1.0)),
    )

"""The language model in a config.json that describes more than one, as the config.json of a text-only model.

Vision-language checkpoints nest its fields in `text_config` or mix them with their own. What comes out names the
text-only architecture whose computation it is: positions of three dimensions are a field of its rotary embedding
(`mrope_section`), what images add to hidden states is an input. Part of `model_config.py`, without torch.
"""

from __future__ import annotations

from typing import Any

from shared.errors import ConfigError

_NESTED = (
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)
ORIGINAL_LLAVA = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}
"""Architectures of the original LLaVA code to the type of their language model."""

_TEXT_TYPES = {
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}  # fmt: skip
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
}
"""What LLaVA checkpoints leave out of `text_config` because it is the default of the model's type."""

_SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "quantization_config")
"""Fields of the whole checkpoint that the language model needs, unless it has its own."""
_NOT_TEXT = ("vision_config", "text_config")


def text_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The language model's fields; `raw` itself for a text-only model.

    Raises:
        ConfigError: the language model is of a type that is not known here.
    """
    architecture = (raw.get("architectures") or ["?"])[0]
    if architecture in ORIGINAL_LLAVA:
        return _text_only(raw, ORIGINAL_LLAVA[architecture])
    if architecture not in _NESTED:
        return raw
    nested = raw.get("text_config") or {key: value for key, value in raw.items() if key not in _NOT_TEXT}
    model_type = nested.get("model_type", "llama")
    model_type = _TEXT_TYPES.get(model_type, model_type)
    tied = bool(raw.get("tie_word_embeddings") or nested.get("tie_word_embeddings"))
    shared = {key: raw[key] for key in _SHARED if raw.get(key) is not None}
    given = {key: value for key, value in nested.items() if value is not None or key not in _SHARED}
    return _text_only(_DEFAULTS.get(model_type, {}) | shared | given | {"tie_word_embeddings": tied}, model_type)


def _text_only(raw: dict[str, Any], model_type: str) -> dict[str, Any]:
    if model_type not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ConfigError(f"config.json: a language model of type {model_type!r} is not supported here, only {known}")
    return {**raw, "architectures": [_ARCHITECTURES[model_type]], "model_type": model_type}

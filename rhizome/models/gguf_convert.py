"""A GGUF file of the Llama family -> a model directory in Hugging Face format, without torch.

Quantized tensors keep their blocks, byte for byte, if they are of a type that the worker computes with
(`services/worker/quantization/gguf.py`); others are expanded to float32, exactly the values that a GGUF runtime
computes with. Names and layouts that llama.cpp changes on the way into GGUF (the pairing of rotary dimensions in q and
k) are changed back.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rhizome.models.gguf_tokenizer import write_tokenizer
from rhizome.models.store import Say
from shared.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFReader

Rows = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
"""Of a weight: numbers, or the bytes of their blocks."""
Metadata = dict[str, Any]

_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_PARTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
KEPT_TYPES = ("Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0")
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def convert(gguf: Path, into: Path, say: Say) -> None:
    """Write config.json, generation_config.json, the tokenizer's files and model.safetensors into `into`.

    Tensors `NAME.weight_blocks` [outputs, bytes] hold blocks; their types are in config.json's `quantization_config`.

    Raises:
        ConfigError: the file's architecture, tokenizer or a tensor is not one that this understands.
    """
    from gguf import GGUFReader

    say(f"reading {gguf.name}")
    reader = GGUFReader(gguf)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    names = {tensor.name for tensor in reader.tensors}
    config = hf_config(metadata, tied="output.weight" not in names)
    if types := _kept_types(reader):
        config["quantization_config"] = {"quant_method": "gguf", "types": types}
    _write_json(into / "config.json", config)
    _write_json(
        into / "generation_config.json", {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    )
    write_tokenizer(metadata, into)
    _write_weights(reader, config, into / "model.safetensors", say)


def hf_config(metadata: Metadata, *, tied: bool) -> dict[str, Any]:
    """config.json as transformers writes it for LlamaForCausalLM.

    Raises:
        ConfigError: another architecture, or a key that this needs is absent.
    """
    if metadata.get("general.architecture") != "llama":
        raise ConfigError(f"GGUF architecture {metadata.get('general.architecture')!r} is not supported: only 'llama'")
    try:
        num_q_heads, hidden = metadata["llama.attention.head_count"], metadata["llama.embedding_length"]
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
            "hidden_size": hidden,
            "intermediate_size": metadata["llama.feed_forward_length"],
            "num_hidden_layers": metadata["llama.block_count"],
            "num_attention_heads": num_q_heads,
            "num_key_value_heads": metadata.get("llama.attention.head_count_kv", num_q_heads),
            "head_dim": metadata.get("llama.attention.key_length", hidden // num_q_heads),
            "max_position_embeddings": metadata["llama.context_length"],
            # The file holds a float32; its shortest decimal is what the model's author wrote.
            "rms_norm_eps": float(str(np.float32(metadata["llama.attention.layer_norm_rms_epsilon"]))),
            "rope_theta": metadata.get("llama.rope.freq_base", 10000.0),
            "tie_word_embeddings": tied,
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
            "torch_dtype": "float32",
        }
    except KeyError as fault:
        raise ConfigError(f"the GGUF file has no {fault.args[0]!r}") from fault


def hf_tensor_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`.

    Raises:
        ConfigError: a tensor that a plain Llama does not have.
    """
    if found := _LAYER_NAME.fullmatch(name):
        layer, part = found.groups()
        if part in _LAYER_PARTS:
            return f"model.layers.{layer}.{_LAYER_PARTS[part]}.weight"
    elif (part := name.removesuffix(".weight")) in _TOP_PARTS:
        return f"{_TOP_PARTS[part]}.weight"
    raise ConfigError(f"GGUF tensor {name!r} is not supported: no plain Llama model has it")


def unpermute_rotary(weight: Rows, num_heads: int) -> Rows:
    """Undo llama.cpp's interleaving of the two halves of each head.

    Args:
        weight: [num_heads * D, hidden or bytes] q or k projection, rows of a head as (0, D/2, 1, D/2+1, ...).

    Returns:
        The same rows as (0, 1, ..., D-1), the order that rotate-half rotary embedding expects.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def _kept_types(reader: GGUFReader) -> dict[str, str]:
    """Types of the tensors whose blocks are kept, by their names without ".weight"."""
    return {
        hf_tensor_name(tensor.name).removesuffix(".weight"): tensor.tensor_type.name
        for tensor in reader.tensors
        if tensor.tensor_type.name in KEPT_TYPES
    }


def _write_weights(reader: GGUFReader, config: dict[str, Any], path: Path, say: Say) -> None:
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights: dict[str, Rows] = {}
    for tensor in reader.tensors:
        name, rows = hf_tensor_name(tensor.name), tensor.data
        if tensor.tensor_type.name in KEPT_TYPES:
            name = name.removesuffix(".weight") + ".weight_blocks"
        else:
            rows = dequantize(rows, tensor.tensor_type).astype(np.float32, copy=False)
        part = tensor.name.split(".")[-2]
        if part in heads:
            rows = unpermute_rotary(rows, heads[part])
        weights[name] = np.ascontiguousarray(rows)
    say(f"writing {sum(w.nbytes for w in weights.values()) / 1e6:.0f} MB of weights")
    save_file(weights, path, metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

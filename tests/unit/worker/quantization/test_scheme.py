"""What config.json of checkpoints that are in use say, as their tools wrote it, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from services.worker.quantization.scheme import choose_scheme, quantization_config
from services.worker.quantization.stored import Part, Scheme, Stored
from shared.errors import ConfigError

WIDTH, DEPTH = 256, 512
UP = "layers.0.mlp.up_proj"


def arguments(kind: str, bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    """Of weights or activations, as compressed-tensors writes them: with everything that has no value."""
    return {
        "actorder": None, "block_structure": None, "dynamic": False, "group_size": None, "num_bits": bits,
        "observer": "minmax", "observer_kwargs": {}, "strategy": strategy, "symmetric": True, "type": kind, **more,
    }  # fmt: skip


def compressed(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    group = {"input_activations": inputs, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group}, "format": layout, "global_compression_ratio": 1.5, "ignore": ["lm_head"],
        "kv_cache_scheme": None, "quant_method": "compressed-tensors", "quantization_status": "compressed", **more,
    }  # fmt: skip


def optimum(bits: int, **more: Any) -> dict[str, Any]:
    """GPTQ as optimum writes it."""
    return {
        "batch_size": 1, "bits": bits, "block_name_to_quantize": None, "cache_block_outputs": True,
        "damp_percent": 0.01, "dataset": None, "desc_act": False, "exllama_config": {"version": 1}, "group_size": 128,
        "max_input_length": None, "model_seqlen": None, "module_name_preceding_first_block": None,
        "modules_in_block_to_quantize": None, "pad_token_id": None, "quant_method": "gptq", "sym": True,
        "tokenizer": None, "true_sequential": True, "use_cuda_fp16": False, "use_exllama": True, **more,
    }  # fmt: skip


TOKEN = {"dynamic": True, "observer": None}
STATIC_FP8 = arguments("float", 8, "tensor")
AWQ = {"bits": 4, "group_size": 128, "modules_to_not_convert": None, "quant_method": "awq", "version": "gemm",
       "zero_point": True}  # fmt: skip
BLOCK = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
PACKED4 = {"weight_packed": (WIDTH, DEPTH // 8), "weight_scale": (WIDTH, DEPTH // 128), "weight_shape": (2,)}
BYTES = {"weight": (WIDTH, DEPTH), "weight_scale": (WIDTH, 1)}
GPTQ4 = {"qweight": (DEPTH // 8, WIDTH), "qzeros": (4, WIDTH // 8), "scales": (4, WIDTH), "g_idx": (DEPTH,)}
NVFP4 = {"weight_packed": (WIDTH, DEPTH // 2), "weight_scale": (WIDTH, DEPTH // 16), "weight_global_scale": (1,)}

SERVED: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "Llama-3.1 quantized.w4a16": (
        compressed("pack-quantized", arguments("int", 4, "group", group_size=128, actorder="weight"), None),
        PACKED4, "compressed-tensors int4 group"),
    "Gemma-3 quantized.w4a16, asymmetric": (
        compressed("pack-quantized", arguments("int", 4, "group", group_size=128, actorder="weight", symmetric=False),
                   None, ignore=["re:.*lm_head", "re:vision_tower.*"], sparsity_config={}, transform_config={}),
        PACKED4 | {"weight_zero_point": (WIDTH // 8, DEPTH // 128)}, "compressed-tensors int4 group"),
    "Llama-3.1 quantized.w8a16": (
        compressed("pack-quantized", arguments("int", 8, "channel"), None),
        {"weight_packed": (WIDTH, DEPTH // 4), "weight_scale": (WIDTH, 1), "weight_shape": (2,)},
        "compressed-tensors int8 channel"),
    "Llama-3.1 quantized.w8a8": (
        compressed("int-quantized", arguments("int", 8, "channel"), arguments("int", 8, "token", **TOKEN)),
        BYTES, "compressed-tensors int8 channel"),
    "Llama-3.1 FP8-dynamic": (
        compressed("float-quantized", arguments("float", 8, "channel"), arguments("float", 8, "token", **TOKEN)),
        BYTES, "compressed-tensors float8 channel"),
    "Llama-3.1 FP8": (
        compressed("float-quantized", STATIC_FP8, STATIC_FP8), BYTES | {"weight_scale": (1,), "input_scale": (1,)},
        "compressed-tensors float8 tensor"),
    "Llama-3.1 FP8 with keys and values": (
        compressed("float-quantized", STATIC_FP8, STATIC_FP8, kv_cache_scheme=STATIC_FP8),
        BYTES | {"weight_scale": (1,), "input_scale": (1,)}, "compressed-tensors float8 tensor"),
    "Qwen3-MoE FP8-BLOCK": (
        compressed("float-quantized", arguments("float", 8, "block", block_structure=[128, 128]),
                   arguments("float", 8, "group", group_size=128, **TOKEN)),
        BYTES | {"weight_scale": (2, 4)}, "compressed-tensors float8 block"),
    "Meta-Llama-3 FP8 (AutoFP8)": (
        {"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"},
        BYTES | {"weight_scale": (1,), "input_scale": (1,)}, "fp8"),
    "Meta-Llama-3 FP8-KV (AutoFP8)": (
        {"activation_scheme": "static", "ignored_layers": ["lm_head"], "kv_cache_scheme": "static",
         "quant_method": "fp8"},
        BYTES | {"weight_scale": (1,), "input_scale": (1,)}, "fp8"),
    "Ministral-3 FP8": (
        {"activation_scheme": "static", "modules_to_not_convert": ["model.vision_tower", "lm_head"],
         "quant_method": "fp8", "weight_block_size": None},
        {"weight": (WIDTH, DEPTH), "weight_scale_inv": (), "activation_scale": ()}, "fp8"),
    "Qwen3 FP8": (
        BLOCK | {"modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm", "model.layers.0.mlp.gate"]},
        {"weight": (WIDTH, DEPTH), "weight_scale_inv": (2, 4)}, "fp8 blocks of 128 x 128"),
    "DeepSeek-V3.1": (
        BLOCK | {"scale_fmt": "ue8m0"}, {"weight": (WIDTH, DEPTH), "weight_scale_inv": (2, 4)},
        "fp8 blocks of 128 x 128"),
    "Qwen2.5-Instruct-AWQ": (
        AWQ, {"qweight": (DEPTH, WIDTH // 8), "qzeros": (4, WIDTH // 8), "scales": (4, WIDTH)}, "awq int4 group 128"),
    "Qwen2.5-VL-Instruct-AWQ": (
        AWQ | {"modules_to_not_convert": ["visual"], "version": "GEMM"},
        {"qweight": (DEPTH, WIDTH // 8), "qzeros": (4, WIDTH // 8), "scales": (4, WIDTH)}, "awq int4 group 128"),
    "Qwen2.5-Instruct-GPTQ-Int4": (optimum(4), GPTQ4, "gptq int4 group 128"),
    "Qwen2.5-Instruct-GPTQ-Int8": (
        optimum(8), GPTQ4 | {"qweight": (DEPTH // 4, WIDTH), "qzeros": (4, WIDTH // 4)}, "gptq int8 group 128"),
    "Qwen1.5-MoE-A2.7B-GPTQ-Int4": (
        optimum(4, modules_in_block_to_quantize=[["self_attn.k_proj"], ["mlp.up_proj"]]), GPTQ4, "gptq int4 group 128"),
    "Llama-3 by GPTQModel": (
        optimum(4, checkpoint_format="gptq_v2", format="gptq_v2", meta={"quantizer": ["gptqmodel:6.0.3"]},
                lm_head=True, dynamic={r"+:.*lm_head$": {"bits": 8}, r"-:.*visual.*": {}}), GPTQ4,
        "gptq int4 group 128"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "tensors", "name"), SERVED.values(), ids=SERVED)
def test_checkpoints_in_use_are_served(config: dict[str, Any], tensors: dict[str, Any], name: str) -> None:
    scheme, stored = up_proj_stored(config, tensors)
    assert scheme.name == name
    assert stored is not None
    skipped = {"input_scale", "activation_scale"}
    assert {tensor: target.shape for tensor, target in stored.targets.items()} == {
        tensor: shape for tensor, shape in tensors.items() if tensor not in skipped
    }
    assert up_proj_stored(config, {"weight": (WIDTH, DEPTH)})[1] is None


def up_proj_stored(config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> tuple[Scheme, Stored | None]:
    """The scheme of a configuration, and how it reads one product that the files hold."""
    scheme = choose_scheme(config, "auto")
    assert scheme is not None
    part = Part(UP, slice(0, WIDTH), WIDTH, slice(0, DEPTH), DEPTH)
    return scheme, scheme.stored(part, {f"{UP}.{name}": shape for name, shape in tensors.items()}, torch.device("cpu"))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "Llama-3.1-bnb-4bit": (
        {"_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16",
         "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
         "llm_int8_skip_modules": None, "load_in_4bit": True, "quant_method": "bitsandbytes"},
        {}, "quantization 'bitsandbytes' in config.json is not supported: use one of awq, gptq, compressed-tensors"),
    "gpt-oss": ({"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"}, {}, "'mxfp4' .* use one of awq"),
    "FP4 by ModelOpt": ({"quant_algo": "NVFP4", "quant_method": "modelopt"}, {}, "'modelopt' .* use one of awq"),
    "Llama-3.3 NVFP4": (
        compressed("nvfp4-pack-quantized", arguments("float", 4, "tensor_group", group_size=16),
                   arguments("float", 4, "tensor_group", group_size=16, dynamic="local")),
        NVFP4, f"{UP}: compressed-tensors float4 by tensor_group as 'nvfp4-pack-quantized' is not supported: use INT4"),
    "MXFP4 by compressed-tensors": (
        compressed("mxfp4-pack-quantized", arguments("float", 4, "group", group_size=32), None),
        PACKED4, f"{UP}: compressed-tensors float4 by group as 'mxfp4-pack-quantized' is not supported: use INT4"),
    "Llama-3.1 2of4 w4a16": (
        compressed("marlin-24", arguments("int", 4, "group", group_size=128), None),
        {"weight_packed": (1,), "scale_packed": (1,), "meta": (1,)},
        f"{UP}: compressed-tensors int4 by group as 'marlin-24' is not supported: use INT4"),
    "Sparse-Llama-3.1 2of4 FP8": (
        compressed("float-quantized", STATIC_FP8, None, sparsity_config={"format": "sparse-24-bitmask"}),
        {}, r"sparse weights \(sparse-24-bitmask\) are not supported: use dense ones"),
    "Llama-3.1 QuIP": (
        compressed("pack-quantized", arguments("int", 4, "group", group_size=128), None, transform_config={
            "config_groups": {"v": {"apply": [{"location": "input", "targets": ["Linear"]}], "type": "hadamard"}}}),
        {}, r"a transform of input \(transform_config\) is not supported: use a checkpoint"),
    "Llama-2-GPTQ of 3 bits": (optimum(3), {}, "GPTQ with 3 bits is not supported: use a checkpoint with 4 or 8"),
    "Llama-2-marlin": (optimum(4, is_marlin_format=True), {}, "layout 'marlin' is not supported: use .* in gptq"),
    "Llama-2-AWQ in gemv": (AWQ | {"version": "gemv"}, {}, "layout 'gemv' is not supported: use .* the gemm layout"),
    "FP8 of the other kind": (BLOCK | {"fmt": "e5m2"}, {}, "kind 'e5m2' are not supported: use a checkpoint with e4m3"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "tensors", "message"), REFUSED.values(), ids=REFUSED)
def test_others_are_refused_by_name_with_what_to_do(
    config: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        up_proj_stored(config, tensors)


@pytest.mark.parametrize("groups", [{}, None])
def test_a_checkpoint_that_quantizes_keys_and_values_alone_has_plain_weights(groups: Any) -> None:
    config = {"quant_method": "compressed-tensors", "config_groups": groups, "kv_cache_scheme": STATIC_FP8}
    assert choose_scheme(config, "auto") is None
    rounded = choose_scheme(config, "fp8")
    assert rounded is not None
    assert rounded.name == "fp8, rounded while loading"


def test_what_old_tools_wrote_into_a_file_of_its_own_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert quantization_config(tmp_path) is None
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 64}')
    scheme = choose_scheme(quantization_config(tmp_path), "auto")
    assert scheme is not None
    assert scheme.name == "gptq int4 group 64"


@pytest.mark.parametrize("place", ["quantization_config", "compression_config", "text_config"])
def test_the_configuration_is_found_where_tools_put_it(place: str, tmp_path: Path) -> None:
    inner = {"quantization_config": AWQ} if place == "text_config" else AWQ
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {}} | {place: inner}))
    assert quantization_config(tmp_path) == AWQ


def test_the_flag_must_not_contradict_the_checkpoint() -> None:
    with pytest.raises(ConfigError, match="--quantization fp8: the checkpoint is quantized already"):
        choose_scheme(AWQ, "fp8")

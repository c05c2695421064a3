"""Engines with checkpoints whose products differ from each other, and whose files hold more than an engine reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.unit.worker.driver import Driver, make_engine, rewritten
from tests.unit.worker.quantization.checkpoints import is_inner_product, mixed_checkpoint, plain_checkpoint
from tests.unit.worker.quantization.writers import CASES
from tests.unit.worker.test_models import every_logprob, prompt

CaseOf = Callable[[str], str | None]


def inner(case: str, **but: str | None) -> CaseOf:
    """`case` for all products of the layers; keywords are parts of names that have another one, None = plain."""

    def case_of(product: str) -> str | None:
        own = [kind for part, kind in but.items() if part in product]
        return own[0] if own else case if is_inner_product(product) else None

    return case_of


def awq(**more: Any) -> dict[str, Any]:
    return CASES["awq 32"].config | more


def gptq(**more: Any) -> dict[str, Any]:
    return CASES["gptq v1 32"].config | more


def _group(targets: list[str], case: str) -> dict[str, Any]:
    """A group of compressed-tensors with the weights, and in the layout, of a case."""
    config = CASES[case].config
    return config["config_groups"]["group_0"] | {"targets": targets, "format": config["format"]}


PACKED, WIDE, FLOAT = (
    "compressed-tensors int4 symmetric 32", "compressed-tensors int8 zero points", "compressed-tensors fp8 channel"
)  # fmt: skip
MIXED: dict[str, tuple[str, dict[str, Any], CaseOf]] = {
    "AWQ, some modules not converted": (
        "llama", awq(modules_to_not_convert=["self_attn.v_proj", "mlp.down_proj"]),
        inner("awq 32", v_proj=None, down_proj=None)),
    "AWQ, one layer not converted": (
        "qwen2", awq(modules_to_not_convert=["layers.1."]), inner("awq 32", **{".1.": None})),
    "GPTQ, some modules of a block": (
        "llama", gptq(modules_in_block_to_quantize=[["self_attn.q_proj", "self_attn.k_proj"], ["mlp.up_proj"]]),
        inner("gptq v1 32", v_proj=None, o_proj=None, gate_proj=None, down_proj=None)),
    "GPTQ, the head too": ("llama", gptq(lm_head=True), inner("gptq v1 32", lm_head="gptq v1 32")),
    "GPTQ, the head in a width of its own": (
        "llama", gptq(lm_head=True, dynamic={r"+:.*lm_head$": {"bits": 8, "group_size": 64}}),
        inner("gptq v1 32", lm_head="gptq int8")),
    "GPTQ, settings of single products": (
        "llama", gptq(dynamic={
            r"-:.*\.1\.self_attn.*": {}, r"+:.*down_proj$": {"bits": 8, "group_size": 64, "sym": False},
            r".*o_proj": {"group_size": 64, "desc_act": True}}),
        inner("gptq v1 32", **{".1.self_attn": None, "down_proj": "gptq int8 zero points",
                               "o_proj": "gptq act-order 64"})),
    "GPTQ, settings of an expert's product": (
        "mixtral", gptq(dynamic={r"+:.*block_sparse_moe\.experts\.\d\.w2": {"bits": 8, "group_size": 64}}),
        inner("gptq v1 32", **{".w2": "gptq int8"})),
    "compressed-tensors, groups of several kinds": (
        "llama",
        {"quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["re:.*lm_head"],
         "config_groups": {
             "group_0": _group(["Linear"], PACKED), "group_1": _group(["re:.*self_attn.*"], WIDE),
             "group_2": _group(["model.layers.0.self_attn.o_proj"], FLOAT)}},
        inner(PACKED, **{"0.self_attn.o_proj": FLOAT, "self_attn": WIDE})),
    "compressed-tensors, embeddings that are the head too": (
        "llama-tied",
        {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
            "group_0": _group(["Linear"], PACKED), "group_1": _group(["Embedding"], WIDE)}},
        inner(PACKED, embed_tokens=WIDE)),
    "compressed-tensors, some products ignored": (
        "qwen2", CASES[PACKED].config | {"ignore": ["lm_head", "model.layers.1.mlp.down_proj", "re:.*0.self_attn.*"]},
        inner(PACKED, **{"0.self_attn": None, "1.mlp.down_proj": None})),
}  # fmt: skip


def logprobs(checkpoint: Path, backend: str) -> np.ndarray:
    return every_logprob(Driver(make_engine(checkpoint, attention_backend=backend)), prompt(60), chunk=23)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(("model", "quantization", "case_of"), MIXED.values(), ids=MIXED)
def test_each_product_is_read_as_it_is_stored(
    model: str, quantization: dict[str, Any], case_of: CaseOf, backend: str, tmp_path: Path
) -> None:
    plain = plain_checkpoint(model, tmp_path / "plain")
    written = mixed_checkpoint(plain, quantization, case_of, tmp_path / "quantized", tmp_path / "meant")
    assert written
    ours, wanted = (logprobs(tmp_path / name, backend) for name in ("quantized", "meant"))
    assert np.abs(ours - wanted).max() / np.abs(wanted).max() < 2e-5


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    plain = plain_checkpoint("llama", tmp_path / "plain")
    mixed_checkpoint(plain, CASES[FLOAT].config, inner(FLOAT), tmp_path / "quantized", tmp_path / "meant")
    return tmp_path / "quantized"


def with_scales(quantized: Path, into: Path, scheme: dict[str, Any] | None, *names: str) -> Path:
    """A copy that says that keys and values are quantized, and has tensors of these names in every layer."""

    def add(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return weights | {f"model.layers.{i}.{name}": torch.full((1,), 0.02) for i in range(2) for name in names}

    copy = rewritten(quantized, into, add)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = scheme
    (copy / "config.json").write_text(json.dumps(config))
    return copy


KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
TOLD = "how the checkpoint quantizes keys and values is not used: --kv-cache-dtype says how they are kept"


@pytest.mark.parametrize(
    "names",
    [("self_attn.k_scale", "self_attn.v_scale"), ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
     ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale", "mlp.up_proj.input_scale")],
)  # fmt: skip
def test_scales_of_keys_and_values_change_nothing_and_are_told_once(
    quantized: Path, names: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_them = with_scales(quantized, tmp_path / "scaled", KV, *names)
    assert len(load_file(with_them / "model.safetensors")) > len(load_file(quantized / "model.safetensors"))
    with caplog.at_level(logging.INFO, "rhizome"):
        ours = logprobs(with_them, "numba")
    (line,) = [record for record in caplog.records if record.message == TOLD]
    assert line.fields == {"skipped_tensors": 4, "kv_cache_dtype": "auto"}  # type: ignore[attr-defined]
    caplog.clear()
    with caplog.at_level(logging.INFO, "rhizome"):
        assert np.array_equal(ours, logprobs(quantized, "numba"))
    assert not [record for record in caplog.records if record.message == TOLD]


def test_keys_and_values_that_are_to_be_rounded_without_scales_are_told_of_too(
    quantized: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rhizome"):
        make_engine(with_scales(quantized, tmp_path / "dynamic", KV | {"dynamic": True}))
    assert [record.message for record in caplog.records].count(TOLD) == 1


def test_plain_weights_beside_scales_of_keys_and_values_are_served(tmp_path: Path) -> None:
    plain = plain_checkpoint("llama", tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {}, "format": "dense"}
    (plain / "config.json").write_text(json.dumps(config))
    scaled = with_scales(plain, tmp_path / "scaled", KV, "self_attn.k_scale", "self_attn.v_scale")
    config.pop("quantization_config")
    (plain / "config.json").write_text(json.dumps(config))
    assert np.array_equal(logprobs(scaled, "numba"), logprobs(plain, "numba"))

"""Checkpoints in all their spellings fill the same weights; what does not fit is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.worker.models.registry import attention_windows
from shared.checkpoint.checkpoint_names import canonical
from shared.errors import ConfigError
from shared.messages.step import RowInit
from shared.model_config import load_model_config
from tests.unit.worker.driver import Driver, make_engine, rewritten

PROMPT = list(range(3, 40))


def tokens_of(path: Path, **flags: Any) -> list[int]:
    return Driver(make_engine(path, **flags)).generate([PROMPT], 6, inits=[RowInit(0, temperature=0.0)])[0]


def test_a_sharded_checkpoint_gives_the_same_tokens(llama: tuple[Path, Any], tmp_path: Path) -> None:
    path, model = llama
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert tokens_of(tmp_path) == tokens_of(path)


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model."])
def test_other_spellings_of_tensor_names_are_understood(llama: tuple[Path, Any], tmp_path: Path, prefix: str) -> None:
    def rename(weights: dict[str, Any]) -> dict[str, Any]:
        return {prefix + canonical(name): value for name, value in weights.items()}

    assert tokens_of(rewritten(llama[0], tmp_path / "renamed", rename)) == tokens_of(llama[0])


def test_old_configuration_fields_are_understood(llama: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(llama[0], tmp_path / "old")
    config = json.loads((tmp_path / "old/config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype"), "rope_scaling": None}
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    assert tokens_of(tmp_path / "old") == tokens_of(llama[0])


def test_windows_of_configurations_without_layer_types_follow_their_first_layer(
    checkpoint: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    path, _ = checkpoint("qwen2-window")
    shutil.copytree(path, tmp_path / "old")
    config = json.loads((path / "config.json").read_text())
    assert config.pop("layer_types") == ["full_attention", "sliding_attention", "sliding_attention"]
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    assert attention_windows(load_model_config(tmp_path / "old")) == [None, 24, 24]
    assert attention_windows(load_model_config(path)) == [None, 24, 24]


def test_derived_and_tied_tensors_in_the_files_are_skipped(llama: tuple[Path, Any], tmp_path: Path) -> None:
    def add(weights: dict[str, Any]) -> dict[str, Any]:
        extra = {
            "lm_head.weight": weights["model.embed_tokens.weight"].clone(),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        }
        return weights | extra

    assert tokens_of(rewritten(llama[0], tmp_path / "more", add)) == tokens_of(llama[0])


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe", "qwen3-moe-unnormed"])
def test_experts_one_by_one_and_stacked_give_the_same_tokens(
    checkpoint: Callable[[str], tuple[Path, Any]], tmp_path: Path, family: str
) -> None:
    path, model = checkpoint(family)
    model.save_pretrained(tmp_path / "single", save_original_format=True)
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    names = [set(load_file(tmp_path / layout / "model.safetensors")) for layout in ("single", "stacked")]
    assert [sum("experts.0." in name for name in layout) > 0 for layout in names] == [True, False]
    assert tokens_of(tmp_path / "single") == tokens_of(tmp_path / "stacked") == tokens_of(path)


@pytest.mark.parametrize(
    ("num_experts", "message"),
    [(4, r"\d+ tensors are missing: layers.0.mlp.experts.4"), (6, "unexpected: layers.0.mlp.experts.5")],
)
def test_a_number_of_experts_that_is_not_the_configurations_is_named(
    checkpoint: Callable[[str], tuple[Path, Any]], tmp_path: Path, num_experts: int, message: str
) -> None:
    def resize(weights: dict[str, Any]) -> dict[str, Any]:
        return {k: v[:1].repeat(num_experts, 1, 1) if ".experts." in k else v for k, v in weights.items()}

    _, model = checkpoint("mixtral")
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    with pytest.raises(ConfigError, match=message):
        make_engine(rewritten(tmp_path / "stacked", tmp_path / "bad", resize))


def test_dummy_weights_fill_experts_too(checkpoint: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    shutil.copy(checkpoint("qwen2-moe")[0] / "config.json", tmp_path)
    assert tokens_of(tmp_path, load_format="dummy") == tokens_of(tmp_path, load_format="dummy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if "layers.1.mlp" not in k}, "3 tensors are missing: layers.1.mlp"),
        (lambda w: w | {"model.layers.0.self_attn.q_proj.lora": torch.ones(2)}, "unexpected: .*q_proj.lora"),
        (lambda w: w | {"model.norm.weight": torch.ones(7)}, r"norm.weight is \[7\], config.json wants \[48\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(llama: tuple[Path, Any], tmp_path: Path, change: Any, message: str) -> None:
    path = rewritten(llama[0], tmp_path / "bad", change)
    with pytest.raises(ConfigError, match=message):
        make_engine(path)


def test_a_broken_file_and_an_absent_one_are_start_up_errors(llama: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(llama[0], tmp_path / "cut")
    data = (tmp_path / "cut/model.safetensors").read_bytes()
    (tmp_path / "cut/model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        make_engine(tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no \.safetensors file"):
        make_engine(tmp_path / "cut")


def test_an_index_that_names_absent_files_is_a_start_up_error(llama: tuple[Path, Any], tmp_path: Path) -> None:
    llama[1].save_pretrained(tmp_path, max_shard_size="40KB")
    next(iter(tmp_path.glob("model-00002*"))).unlink()
    with pytest.raises(ConfigError, match="files that are not there"):
        make_engine(tmp_path)


def test_dummy_weights_need_only_the_configuration_and_are_the_same_every_time(
    llama: tuple[Path, Any], tmp_path: Path
) -> None:
    shutil.copy(llama[0] / "config.json", tmp_path)
    assert tokens_of(tmp_path, load_format="dummy") == tokens_of(tmp_path, load_format="dummy")


def test_an_unknown_architecture_is_a_start_up_error(llama: tuple[Path, Any], tmp_path: Path) -> None:
    config = json.loads((llama[0] / "config.json").read_text()) | {"architectures": ["MambaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="MambaForCausalLM"):
        make_engine(tmp_path, load_format="dummy")

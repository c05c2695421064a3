"""Which settings of a compressed-tensors configuration a product has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from services.worker.quantization.compressed_groups import CompressedGroups
from services.worker.quantization.compressed_tensors import CompressedTensors
from services.worker.quantization.stored import Part
from shared.errors import ConfigError

UP, HEAD = "layers.3.mlp.up_proj", "lm_head"


def groups_of(*targets: list[str], ignore: list[str] | None = None) -> CompressedGroups:
    """A group for each list, told apart by its number of bits: 1, 2, 3, ..."""
    return CompressedGroups(config_of(*targets, ignore=ignore))


def config_of(*targets: list[str], ignore: list[str] | None = None) -> dict[str, Any]:
    return {
        "format": "pack-quantized", "ignore": ignore,
        "config_groups": {
            f"group_{i}": {"targets": target, "weights": {"type": "int", "num_bits": i + 1, "strategy": "channel"}}
            for i, target in enumerate(targets)
        },
    }  # fmt: skip


def bits_of(groups: CompressedGroups, product: str) -> int | None:
    own = groups.of(product)
    return own.bits if own else None


@pytest.mark.parametrize(
    ("targets", "bits"),
    [
        ([["Linear"], ["re:.*up_proj$"], ["model.layers.3.mlp.up_proj"]], 3),
        ([["model.layers.3.mlp.up_proj"], ["re:.*up_proj$"], ["Linear"]], 1),
        ([["Linear"], ["re:.*up_proj$"], ["model.layers.4.mlp.up_proj"]], 2),
        ([["re:.*down_proj$"], ["Linear"], ["model.layers.4.mlp.up_proj"]], 2),
        ([["re:.*up_proj$"], ["re:.*mlp.*"]], 2),
        ([["re:.*mlp.*"], ["re:.*up_proj$"]], 1),
        ([["Linear"], ["Linear"]], 2),
        ([["re:.*down_proj$", "Linear"], ["re:.*gate_proj$"]], 1),
    ],
    ids=["a name", "its place does not matter", "a pattern", "the class", "the first pattern by letters",
         "in any order", "a target said twice", "a group of several targets"],
)  # fmt: skip
def test_a_name_goes_before_a_pattern_and_a_pattern_before_a_class(targets: list[list[str]], bits: int) -> None:
    assert bits_of(groups_of(*targets), UP) == bits


@pytest.mark.parametrize(
    "target",
    [UP, f"model.{UP}", f"model.language_model.{UP}", f"language_model.model.{UP}", rf"re:model\.{UP}",
     r"re:^model\.language_model\.layers\.\d\.mlp", r"re:(?:.*\.)?layers\.[0-3]\.", r"re:.*(up|gate)_proj"],
)  # fmt: skip
def test_targets_are_names_as_files_spell_them(target: str) -> None:
    groups = groups_of([target])
    assert bits_of(groups, UP) == 1
    assert bits_of(groups, "layers.33.mlp.down_proj") is None


def test_experts_are_found_by_their_old_names() -> None:
    groups = groups_of([r"re:.*block_sparse_moe\.experts\.\d+\.w2$"], ["Linear"])
    assert bits_of(groups, "layers.0.mlp.experts.12.down_proj") == 1
    assert bits_of(groups, "layers.0.mlp.experts.12.up_proj") == 2


def test_embeddings_are_a_class_of_their_own() -> None:
    assert bits_of(groups_of(["Linear"]), "embed_tokens") is None
    assert bits_of(groups_of(["Linear"], ["Embedding"]), "embed_tokens") == 2


def test_a_group_without_weights_means_no_product() -> None:
    config = config_of(["Linear"])
    config["config_groups"]["attention"] = {"targets": ["re:.*self_attn"], "weights": None, "input_activations": {}}
    assert bits_of(CompressedGroups(config), "layers.0.self_attn.q_proj") == 1


@pytest.mark.parametrize("ignore", [[HEAD], ["re:.*lm_head"], ["re:.*up_proj", "language_model.lm_head"]])
def test_what_is_ignored_is_known_by_the_same_words(ignore: list[str]) -> None:
    groups = groups_of(["Linear"], ignore=ignore)
    assert groups.ignores(HEAD)
    assert not groups.ignores("layers.0.mlp.down_proj")


def test_made_up_weights_are_plain_where_targets_and_ignored_names_say_so() -> None:
    config = config_of(["re:.*_proj"], ignore=["re:.*down_proj"])
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    scheme, sizes = CompressedTensors(config), (slice(0, 64), 64, slice(0, 64), 64)
    plain = {name: scheme.stored(Part(name, *sizes), None, torch.device("cpu")) is None for name in (
        UP, "layers.3.mlp.down_proj", "layers.3.mlp.gate", HEAD, "layers.3.mlp.odd")}  # fmt: skip
    assert plain == {
        UP: False, "layers.3.mlp.down_proj": True, "layers.3.mlp.gate": True, HEAD: True, "layers.3.mlp.odd": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "meant"),
    [
        ({"group_size": 64, "num_bits": 8}, "int8 by group as 'pack-quantized'"),
        ({"group_size": -1, "num_bits": 4}, "int4 by channel as 'pack-quantized'"),
        ({"num_bits": 8, "type": "float"}, "float8 by tensor as 'pack-quantized'"),
    ],
)
def test_a_strategy_that_is_not_named_follows_from_the_size_of_groups(weights: dict[str, Any], meant: str) -> None:
    own = CompressedGroups({"format": "pack-quantized", "config_groups": {"g": {"weights": weights}}}).of(UP)
    assert str(own) == meant


@pytest.mark.parametrize("block", [[128, 64], "128x64"])
def test_blocks_are_given_in_two_ways(block: Any) -> None:
    weights = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": block}
    own = CompressedGroups({"format": "float-quantized", "config_groups": {"g": {"weights": weights}}}).of(UP)
    assert own is not None
    assert own.block == (128, 64)


def test_a_group_may_have_a_layout_of_its_own() -> None:
    config = config_of(["Linear"], ["re:.*up_proj"]) | {"format": "mixed-precision"}
    config["config_groups"]["group_0"]["format"] = "int-quantized"
    config["config_groups"]["group_1"]["format"] = "pack-quantized"
    groups = CompressedGroups(config)
    assert [str(groups.of(name)) for name in (UP, "layers.0.mlp.down_proj")] == [
        "int2 by channel as 'pack-quantized'", "int1 by channel as 'int-quantized'"
    ]  # fmt: skip


def test_a_pattern_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'\*up' is no regular expression"):
        groups_of(["re:*up"])

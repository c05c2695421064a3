"""Reading the mixture-of-experts fields of config.json."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import ConfigError
from shared.moe_config import MoeConfig, moe_config

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "num_hidden_layers": 3, "intermediate_size": 64, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
QWEN3: dict[str, Any] = {
    "model_type": "qwen3_moe", "num_hidden_layers": 6, "intermediate_size": 64, "moe_intermediate_size": 24,
    "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}  # fmt: skip


def test_mixtral_has_wide_experts_in_every_layer_and_weights_that_sum_to_one() -> None:
    assert moe_config(MIXTRAL) == MoeConfig(8, 2, 64, True, 0, frozenset({0, 1, 2}))


def test_qwen_says_how_wide_its_experts_are_and_what_their_weights_sum_to() -> None:
    every = frozenset(range(6))
    assert moe_config(QWEN3) == MoeConfig(16, 4, 24, True, 0, every)
    plain = {k: v for k, v in QWEN3.items() if k not in ("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers")}
    assert moe_config(plain) == MoeConfig(16, 4, 24, False, 0, every)
    shared = {**QWEN3, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 40}
    assert moe_config(shared) == MoeConfig(16, 4, 24, True, 40, every)


def test_transformers_spelling_of_the_number_of_experts_is_understood() -> None:
    renamed = {**QWEN3, "num_local_experts": QWEN3["num_experts"]}
    del renamed["num_experts"]
    assert moe_config(renamed) == moe_config(QWEN3)


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({"decoder_sparse_step": 2}, {1, 3, 5}),
        ({"mlp_only_layers": [0, 5]}, {1, 2, 3, 4}),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [2]}, {5}),
        ({"decoder_sparse_step": 7, "mlp_only_layers": None}, set()),
    ],
)
def test_layers_may_stay_dense(change: dict[str, Any], layers: set[int]) -> None:
    config = moe_config({**QWEN3, **change})
    assert config is not None
    assert config.layers == layers


@pytest.mark.parametrize(
    "raw", [{**QWEN3, "num_experts": 0}, {**QWEN3, "model_type": "llama"}, {"model_type": "qwen2"}]
)
def test_dense_and_unknown_families_have_none(raw: dict[str, Any]) -> None:
    assert moe_config(raw) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts_per_tok": 17}, r"num_experts_per_tok 17 must be in 1\.\.16"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok 0"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size 0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step 0"),
        ({"mlp_only_layers": [2, 6]}, r"layer 6, there are 0\.\.5"),
    ],
)
def test_fields_that_contradict_each_other_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        moe_config({**QWEN3, **change})

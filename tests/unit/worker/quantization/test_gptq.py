"""Settings of single products in GPTQ checkpoints."""

from __future__ import annotations

from typing import Any

import pytest

from services.worker.quantization.stored import Part
from tests.unit.worker.quantization.test_formats import (
    CPU,
    DEPTH,
    NAME,
    WIDTH,
    assert_is,
    random_weight,
    read,
    scheme_of,
)
from tests.unit.worker.quantization.writers import gptq

WHOLE = slice(0, WIDTH), slice(0, DEPTH)


def config_of(**dynamic: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "dynamic": dynamic}


@pytest.mark.parametrize(
    "rule",
    [r".*up_proj", r"+:.*up_proj$", r"+:model\.layers\.0\.", r".*\.(?:0|1[0-5])\..*", r"+:(model\.)?layers\.0\.mlp",
     r"+:model\.language_model\.layers\.0\.mlp\.up_proj"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"bits": 8}, {"group": 128, "bits": 8}),
        ({"group_size": 32}, {"group": 32}),
        ({"bits": 8, "group_size": -1}, {"group": -1, "bits": 8}),
        ({"sym": False}, {"group": 128, "symmetric": False}),
        ({"bits": 8, "sym": False}, {"group": 128, "bits": 8, "symmetric": False}),
        ({"desc_act": True}, {"group": 128, "shuffled": True}),
        ({"damp_percent": 0.05}, {"group": 128}),
    ],
)
def test_a_product_that_a_pattern_means_has_its_settings(
    rule: str, changes: dict[str, Any], how: dict[str, Any]
) -> None:
    tensors, want = gptq(random_weight(), **how)
    assert_is(read(config_of(**{rule: changes}), tensors, *WHOLE), want)


@pytest.mark.parametrize("rule", [r".*down_proj", r"+:.*\.1\..*", r"+:up_proj", r"-:.*down_proj"])
def test_others_have_those_of_all(rule: str) -> None:
    tensors, want = gptq(random_weight(), 128)
    assert_is(read(config_of(**{rule: {"bits": 8, "group_size": 32}}), tensors, *WHOLE), want)


def test_the_first_pattern_counts() -> None:
    tensors, want = gptq(random_weight(), 64)
    dynamic = {r"+:.*down_proj": {"group_size": 32}, r"+:.*mlp.*": {"group_size": 64}, r".*": {"bits": 8}}
    assert_is(read(config_of(**dynamic), tensors, *WHOLE), want)


def test_products_that_are_to_be_plain_are_so_where_weights_are_made_up() -> None:
    scheme = scheme_of(config_of(**{r"-:.*up_proj": {}, r"+:.*mlp.*": {"bits": 8}}))
    plain = [
        scheme.stored(Part(name, WHOLE[0], WIDTH, WHOLE[1], DEPTH), None, CPU) is None
        for name in (NAME, "layers.0.mlp.down_proj", "lm_head")
    ]
    assert plain == [True, False, True]


def test_files_decide_what_is_plain() -> None:
    scheme = scheme_of(config_of())
    shapes = {f"{NAME}.weight": (WIDTH, DEPTH)}
    assert scheme.stored(Part(NAME, WHOLE[0], WIDTH, WHOLE[1], DEPTH), shapes, CPU) is None

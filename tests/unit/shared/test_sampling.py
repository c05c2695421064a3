"""Limits of sampling parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared import sampling
from shared.errors import InvalidRequest
from shared.sampling import NEUTRAL, SamplingParams


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("max_new_tokens", [0, 1, 2**31 - 1], [-1, 2**31]),
        ("temperature", [0.0, 1.0, 100.0], [-0.1, 100.1, math.nan, math.inf]),
        ("top_p", [1e-9, 1.0], [0.0, -1.0, 1.1, math.nan]),
        ("top_k", [-1, 0, 1, 2**31 - 1], [-2, 2**31]),
        ("min_p", [0.0, 1.0], [-0.1, 1.1, math.nan]),
        ("presence_penalty", [-2.0, 2.0], [-2.1, 2.1, math.nan]),
        ("frequency_penalty", [-2.0, 2.0], [-2.1, 2.1, math.nan]),
        ("repetition_penalty", [0.01, 100.0], [0.0, -1.0, 100.1, math.nan]),
        ("seed", [0, -(2**63), 2**63 - 1], [2**63, -(2**63) - 1]),
        ("min_new_tokens", [0, 5], [-1]),
        ("stop", [["a"] * 16, ["x" * 1024]], [["a"] * 17, ["x" * 1025], [""]]),
        ("stop_token_ids", [[1] * 64], [[1] * 65]),
        ("logit_bias", [{"5": -100.0, "6": 100.0}], [{"5": 100.1}, {"5": math.nan}, {"x": 1.0}, {"-1": 1.0},
                                                      {"": 1.0}, {"٣": 1.0}, {"1.5": 0.0},
                                                      {str(i): 0.0 for i in range(sampling.MAX_LOGIT_BIAS + 1)}]),
    ],
)  # fmt: skip
def test_every_parameter_has_its_range(name: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        SamplingParams(**{name: value}).check()
    for value in refused:
        with pytest.raises(InvalidRequest) as caught:
            SamplingParams(**{name: value}).check()
        assert caught.value.param == name


def test_fewer_tokens_than_the_least_is_a_contradiction() -> None:
    SamplingParams(max_new_tokens=3, min_new_tokens=3).check()
    with pytest.raises(InvalidRequest, match="min_tokens 4 is over max_tokens 3"):
        SamplingParams(max_new_tokens=3, min_new_tokens=4).check()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(stop_token_ids=[10]),
        SamplingParams(stop_token_ids=[-1]),
        SamplingParams(logit_bias={"10": 1.0}),
        SamplingParams(logit_bias={"9" * 5000: 1.0}),
    ],
)
def test_token_ids_lie_in_the_vocabulary(params: SamplingParams) -> None:
    with pytest.raises(InvalidRequest, match="outside the vocabulary of 10"):
        params.check_vocab(10)
    SamplingParams(stop_token_ids=[0, 9], logit_bias={"9": 1.0}).check_vocab(10)


def test_open_parameters_take_the_defaults_of_the_model_and_given_ones_stay() -> None:
    model = SamplingParams(temperature=0.6, top_p=0.9, top_k=20, min_p=0.0, repetition_penalty=1.1)
    resolved = SamplingParams(temperature=0.0, top_k=-1, seed=3).resolve(model)
    assert (resolved.temperature, resolved.top_p, resolved.top_k, resolved.seed) == (0.0, 0.9, -1, 3)
    assert SamplingParams().resolve(NEUTRAL).temperature == 1.0

"""SGLang's own front end against the gateway: the requests that its RuntimeEndpoint sends, in its exact shape.

Source: sgl-project/sglang, python/sglang/lang/backend/runtime_endpoint.py. What its client reads from the answers is
what is asserted here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.gateway.deployment import CACHED_TOKENS, MODEL, PROMPT_TOKENS, Deployment, deployed

SAMPLING: dict[str, Any] = {
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "max_new_tokens": 16, "min_new_tokens": 0,
    "n": 1, "stop": ["\n"], "stop_token_ids": [], "stop_regex": (), "temperature": 0.5, "top_p": 1.0, "top_k": -1,
    "min_p": 0.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "ignore_eos": False, "regex": None,
    "json_schema": None,
}  # fmt: skip
PROMPT_ONLY = {"text": "Once", "sampling_params": {"max_new_tokens": 0}}


@pytest.fixture
async def gw() -> AsyncIterator[Deployment]:
    async with deployed() as deployment:
        yield deployment


async def test_its_first_question_is_the_model(gw: Deployment) -> None:
    status, info = await gw.get("/get_model_info")
    assert (status, info["model_path"], info["is_generation"]) == (200, MODEL, True)
    assert (await gw.get("/get_server_info"))[1]["models"][0]["id"] == MODEL


async def test_generate_and_its_facts(gw: Deployment) -> None:
    status, answer = await gw.post("/generate", {"text": "Once", "sampling_params": SAMPLING})
    assert (status, answer["text"]) == (200, 'Hello "world" é')
    assert answer["meta_info"]["prompt_tokens"] == PROMPT_TOKENS
    assert answer["meta_info"]["cached_tokens"] == CACHED_TOKENS


async def test_a_prefix_is_computed_without_generating(gw: Deployment) -> None:
    status, answer = await gw.post("/generate", PROMPT_ONLY)
    assert (status, answer["meta_info"]["prompt_tokens"]) == (200, PROMPT_TOKENS)
    assert gw.tokenizer.requests[-1].sampling.max_new_tokens == 0


async def test_choices_are_scored_as_a_batch_with_texts_in_the_logprobs(gw: Deployment) -> None:
    body = {
        "text": ["Once a", "Once b"], "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True, "return_text_in_logprobs": True, "logprob_start_len": 5,
    }  # fmt: skip
    status, answers = await gw.post("/generate", body)
    assert (status, len(answers)) == (200, 2)
    for answer in answers:
        assert isinstance(answer["meta_info"]["input_token_logprobs"], list)
        assert isinstance(answer["meta_info"]["output_token_logprobs"], list)
    assert [r.logprob_start_len for r in gw.tokenizer.requests[-2:]] == [5, 5]

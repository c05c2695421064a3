"""The real model through every process, greedy, against transformers' `generate` on the same weights in fp32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.e2e.stack import Stack

NEW_TOKENS = 12
TEXT = (
    "The river rises in the mountains, runs through three countries and ends in a wide delta. Its upper course is "
    "steep and cold, its middle course carries ships, and its lower course floods the fields every spring. "
)
Case = tuple[list[int], list[int]]


LENGTHS = [[1, 2, 3, 5, 8, 12], [16, 17, 31, 32, 33], [47, 64, 65, 90], [128, 150, 200], [257, 300]]


@pytest.fixture(scope="module")
def wanted(default_model: tuple[Any, Any]) -> list[Case]:
    """20 prompts of LENGTHS tokens, and what transformers makes of each."""
    model, tokenizer = default_model
    ids = tokenizer(TEXT * 8)["input_ids"]
    out: list[Case] = []
    for lengths in LENGTHS:
        prompts = [ids[i : i + length] for i, length in enumerate(lengths, len(out))]
        out += zip(prompts, _generate(model, prompts), strict=True)
    return out


def _generate(model: torch.nn.Module, prompts: list[list[int]]) -> list[list[int]]:
    """What follows each prompt. They are padded on the left to one batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, do_sample=False,
                             max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)  # fmt: skip
    return out[:, width:].tolist()


def _ask(stack: Stack, prompt: list[int]) -> list[int]:
    params = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    status, answer = stack.post("/generate", {"input_ids": prompt, "sampling_params": params}, 300)
    assert status == 200, answer
    return answer["output_ids"]


def _all_at_once(stack: Stack, prompts: list[list[int]]) -> list[list[int]]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: _ask(stack, prompt), prompts))


def test_tokens_are_those_of_transformers_alone_and_all_at_once(stack: Stack, wanted: list[Case]) -> None:
    prompts, tokens = [p for p, _ in wanted], [t for _, t in wanted]
    stack.post("/flush_cache", {})
    assert _all_at_once(stack, prompts) == tokens
    assert [_ask(stack, prompt) for prompt in prompts] == tokens  # now from the cache


@pytest.mark.parametrize(
    "flags",
    [
        ("--tp-size", "2", "--pipeline-depth", "3"),
        ("--page-size", "1", "--chunked-prefill-size", "64", "--pipeline-depth", "1", "--max-total-tokens", "700"),
    ],
    ids=["two ranks", "small chunks, small pages, small pool"],
)
def test_tokens_are_the_same_in_other_configurations(wanted: list[Case], flags: tuple[str, ...]) -> None:
    other = Stack(*flags)
    try:
        other.wait_ready()
        assert _all_at_once(other, [p for p, _ in wanted]) == [t for _, t in wanted]
    finally:
        assert other.stop() == 0

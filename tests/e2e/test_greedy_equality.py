"""The real model through every process, greedy, against transformers' `generate` on the same weights in fp32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rhizome.models import DEFAULT_MODEL
from rhizome.models.resolve import resolve_model
from tests.e2e.stack import Stack
from tests.plain_model import plain_model

NEW_TOKENS = 12
TEXT = (
    "The river rises in the mountains, runs through three countries and ends in a wide delta. Its upper course is "
    "steep and cold, its middle course carries ships, and its lower course floods the fields every spring. "
)
Case = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def wanted(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """20 prompts of 1 to about 300 tokens, and what transformers makes of each."""
    folder = plain_model(resolve_model(DEFAULT_MODEL, print), tmp_path_factory.mktemp("plain") / "model")
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT * 8)["input_ids"]
    prompts = [ids[i : i + n] for i, n in enumerate((1, 2, 3, 5, 8, 12, 16, 17, 31, 32, 33, 47, 64, 65, 90, 128, 150))]
    prompts += [ids[:n] for n in (200, 257, 300)]
    return [(prompt, _generate(model, prompt)) for prompt in prompts]


def _generate(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                             max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)  # fmt: skip
    return out[0, len(prompt) :].tolist()


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

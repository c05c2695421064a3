"""Scheduler and worker together, greedy, against transformers' `generate` on the same weights, token for token.

No bus in between: every combination of page size, chunking, pipeline depth and cache state runs in seconds. The same
comparison through all processes and on two ranks is in tests/e2e.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from shared.sampling import NEUTRAL
from tests.fakes.real_engine import real_driver

NEW_TOKENS = 24
GREEDY = dataclasses.replace(NEUTRAL, temperature=0.0)
VOCAB = 300
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4)),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(
        **SHAPE, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True,
        mlp_only_layers=[1])),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    torch.set_num_threads(1)
    torch.manual_seed(11)
    hf = MODELS[family]()
    for parameter in hf.parameters():  # spread the logits: a random model must not decide by rounding
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    folder = tmp_path_factory.mktemp(family)
    hf.eval().save_pretrained(folder)
    return folder, hf


@pytest.fixture(scope="module")
def wanted(model: tuple[Path, torch.nn.Module]) -> list[tuple[list[int], list[int]]]:
    """20 prompts of different lengths, some with a common beginning, and what transformers makes of each."""
    rng = random.Random(3)
    shared = [rng.randrange(3, VOCAB) for _ in range(90)]
    prompts = [[rng.randrange(3, VOCAB) for _ in range(n)] for n in (1, 2, 5, 15, 16, 17, 31, 64, 65, 100, 130, 200)]
    prompts += [shared[:n] + [rng.randrange(3, VOCAB) for _ in range(4)] for n in (20, 33, 48, 60, 64, 75, 80, 90)]
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            full = model[1].generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                     max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)  # fmt: skip
        out.append((prompt, full[0, len(prompt) :].tolist()))
    return out


def way(family: str, depth: int, opposite: bool) -> tuple[int, int, str]:
    """Page size, chunk and backend.

    Two opposite ways differ in all three, so there are four couples of them. A model takes another couple at each
    depth, and no two models take the same one: each model meets every pair of values, and the models together meet
    every combination.
    """
    couple = (list(MODELS).index(family) + depth) % 4
    bits = [couple >> bit & 1 ^ opposite for bit in range(3)]
    return (1, 16)[bits[0]], (-1, 64)[bits[1]], ("torch", "numba")[bits[2]]


def test_the_ways_of_a_model_have_every_pair_of_values_and_those_of_all_models_every_combination() -> None:
    found = {
        family: [(depth, *way(family, depth, side)) for depth in (1, 2, 3) for side in (False, True)]
        for family in MODELS
    }
    for ways in found.values():
        for one, other in itertools.combinations(zip(*ways, strict=True), 2):
            assert len(set(zip(one, other, strict=True))) == len(set(one)) * len(set(other))
    assert len({taken for ways in found.values() for taken in ways}) == 3 * 2 * 2 * 2


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("opposite", [False, True])
def test_tokens_are_those_of_transformers_alone_and_together_cold_and_warm(
    family: str,
    model: tuple[Path, torch.nn.Module],
    wanted: list[tuple[list[int], list[int]]],
    depth: int,
    opposite: bool,
) -> None:
    page_size, chunk, backend = way(family, depth, opposite)
    driver = real_driver(model[0], page_size=page_size, chunk=chunk, depth=depth, pool_tokens=4096, backend=backend)
    alone = []
    for prompt, _ in wanted:
        alone.append(driver.submit(prompt, NEW_TOKENS, sampling=GREEDY, ignore_eos=True))
        driver.run()
    warm = [driver.submit(prompt, NEW_TOKENS, sampling=GREEDY, ignore_eos=True) for prompt, _ in wanted]
    driver.run()
    driver.scheduler.flush()
    cold = [driver.submit(prompt, NEW_TOKENS, sampling=GREEDY, ignore_eos=True) for prompt, _ in wanted]
    driver.run()
    driver.check()
    for handles in (alone, warm, cold):
        assert [driver.outputs[h].tokens for h in handles] == [tokens for _, tokens in wanted]
    assert sum(driver.outputs[h].cached for h in warm) > 0.8 * sum(len(p) for p, _ in wanted) - 20 * page_size


@pytest.mark.parametrize("page_size", [1, 16])
def test_tokens_are_the_same_when_a_tiny_pool_forces_retractions(
    model: tuple[Path, torch.nn.Module], wanted: list[tuple[list[int], list[int]]], page_size: int
) -> None:
    driver = real_driver(model[0], page_size=page_size, chunk=64, depth=2, pool_tokens=512)
    driver.scheduler.engines[driver.info.engine_id].budget.ratio = 0.0
    handles = [driver.submit(prompt, NEW_TOKENS, sampling=GREEDY, ignore_eos=True) for prompt, _ in wanted]
    driver.run()
    driver.check()
    assert driver.scheduler.totals.retractions > 0
    assert [driver.outputs[h].tokens for h in handles] == [tokens for _, tokens in wanted]

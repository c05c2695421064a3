"""Every family computes what transformers computes, however the prompt is cut and wherever its pages lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.messages.step import RowInit
from tests.fakes.vlm_checkpoints import FAMILIES as VLM_FAMILIES
from tests.fakes.vlm_checkpoints import original_llava_checkpoint, vlm_checkpoint
from tests.unit.worker.conftest import FAMILIES
from tests.unit.worker.driver import Driver, Extend, make_engine

Checkpoints = Callable[[str], tuple[Path, Any]]
VOCAB = 320


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


def reference_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def reference_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None,
            pad_token_id=0, use_cache=True,
        )  # fmt: skip
    return out[0, len(ids) :].tolist()


def every_logprob(driver: Driver, ids: list[int], chunk: int) -> np.ndarray:
    """The whole raw distribution at every position of a prompt computed in chunks: [len(ids) - 1, V]."""
    rows = []
    for at in range(0, len(ids), chunk):
        piece = ids[at : at + chunk]
        follows = ids[at + chunk] if at + chunk < len(ids) else -1
        init = RowInit(0, temperature=0.0, top_logprobs_num=VOCAB)
        result = driver.run([Extend(0, piece, at, follows < 0, 0, follows)], new=[init] if at == 0 else [])
        table = np.empty(result.prompt_top_ids.shape, np.float32)
        np.put_along_axis(table, result.prompt_top_ids, result.prompt_top_logprobs, axis=1)
        rows.append(table)
    return np.concatenate(rows)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_chunked_prompt_has_the_distributions_of_transformers(
    checkpoint: Checkpoints, family: str, page_size: int
) -> None:
    path, model = checkpoint(family)
    ids = prompt(75)
    ours = every_logprob(Driver(make_engine(path, page_size=page_size)), ids, chunk=29)
    theirs = reference_logprobs(model, ids)[:-1].numpy()
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("family", ["llama-llama3", "mistral-window", "qwen3", "mixtral", "qwen2-moe", "qwen3-moe"])
def test_ragged_rows_that_join_one_by_one_decode_as_transformers_generates(
    checkpoint: Checkpoints, family: str, page_size: int
) -> None:
    path, model = checkpoint(family)
    prompts = [prompt(n, seed=n) for n in (5, 61, 1, 130, 17, 33)]
    ours = Driver(make_engine(path, page_size=page_size)).generate(prompts, 12, chunk=24)
    assert ours == [reference_greedy(model, p, 12) for p in prompts]


@pytest.mark.parametrize("family", VLM_FAMILIES)
def test_text_goes_through_vision_language_models_as_through_transformers(family: str, tmp_path: Path) -> None:
    path, model = vlm_checkpoint(family, tmp_path)
    ids = np.random.default_rng(0).integers(1, 256, 40).tolist()
    assert Driver(make_engine(path)).generate([ids], 12) == [reference_greedy(model, ids, 12)]


def test_text_goes_through_the_original_llava_layout_too(tmp_path: Path) -> None:
    path, model = original_llava_checkpoint(tmp_path)
    ids = np.random.default_rng(0).integers(1, 256, 40).tolist()
    assert Driver(make_engine(path)).generate([ids], 12) == [reference_greedy(model, ids, 12)]


def test_rows_of_equal_and_of_very_different_length_decode_together(llama: tuple[Path, Any]) -> None:
    path, model = llama
    prompts = [prompt(n, seed=i) for i, n in enumerate((30, 30, 30, 400, 2, 30, 200, 201))]
    assert Driver(make_engine(path)).generate(prompts, 6) == [reference_greedy(model, p, 6) for p in prompts]


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_cached_prefix_is_used_through_another_row(llama: tuple[Path, Any], page_size: int) -> None:
    path, model = llama
    driver = Driver(make_engine(path, page_size=page_size))
    shared, first, second = prompt(48), prompt(9, 1), prompt(13, 2)
    driver.run([Extend(0, shared + first)], new=[RowInit(0, temperature=0.0)])
    pages = driver.pages_of[0][: 48 // page_size]
    result = driver.run([Extend(3, second, start=48)], [0], new=[RowInit(3, temperature=0.0)], shared_pages={3: pages})
    tokens = [int(result.tokens[0])]
    tokens += [int(driver.run(decode=[3]).tokens[0]) for _ in range(4)]
    assert tokens == reference_greedy(model, shared + second, 5)


def test_an_extend_row_may_start_below_its_length(llama: tuple[Path, Any]) -> None:
    path, model = llama
    driver = Driver(make_engine(path))
    ids, forced = prompt(20), prompt(6, 5)
    driver.run([Extend(0, ids)], new=[RowInit(0, temperature=0.0)])
    for _ in range(4):
        driver.run(decode=[0])
    tokens = [int(driver.run([Extend(0, forced, start=18)]).tokens[0])]
    tokens += [int(driver.run(decode=[0]).tokens[0]) for _ in range(3)]
    assert tokens == reference_greedy(model, ids[:18] + forced, 4)


def test_absent_decode_rows_stand_for_those_of_the_plan_before(llama: tuple[Path, Any]) -> None:
    path, model = llama
    driver = Driver(make_engine(path))
    prompts = {4: prompt(7), 1: prompt(40, 1)}
    driver.run([Extend(r, p) for r, p in prompts.items()], new=[RowInit(r, temperature=0.0) for r in prompts])
    first = driver.run(decode=[1, 4]).tokens.tolist()
    again = driver.run(decode=None).tokens.tolist()
    wanted = {r: reference_greedy(model, p, 3) for r, p in prompts.items()}
    assert first == [wanted[1][1], wanted[4][1]]
    assert again == [wanted[1][2], wanted[4][2]]
    assert driver.run(decode=[]).tokens.size == 0


def test_half_precision_runs_and_stays_near_full_precision(llama: tuple[Path, Any]) -> None:
    path, model = llama
    ids = prompt(40)
    ours = every_logprob(Driver(make_engine(path, dtype="bfloat16")), ids, chunk=16)
    theirs = reference_logprobs(model, ids)[:-1].numpy()
    assert np.abs(ours - theirs).mean() < 0.2

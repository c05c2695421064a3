"""The sampler against naive references and against transformers' processors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper  # isort: skip

from services.worker.sampling.draw import Filters, draw, greedy
from services.worker.sampling.logprobs import LEAST, logprobs_of
from services.worker.sampling.random import uniforms
from services.worker.sampling.rows import SamplingRows
from services.worker.sampling.sampler import TorchSampler
from shared.messages.step import RowInit

VOCAB = 1000
CPU = torch.device("cpu")


def logits_of(rows: int, seed: int = 0, vocab: int = VOCAB, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def filters(n: int, temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0, min_p: float = 0.0) -> Filters:
    return Filters(
        np.full(n, temperature, np.float32), np.full(n, top_k, np.int64),
        np.full(n, top_p, np.float32), np.full(n, min_p, np.float32),
    )  # fmt: skip


class OnHost:
    """A sampler whose results are arrays at once."""

    def __init__(self, state: SamplingRows) -> None:
        self.state, self._sampler = state, TorchSampler(state)

    def sample(self, logits: torch.Tensor, at: np.ndarray) -> OnHostResult:
        found = self._sampler.sample(logits, at, torch.from_numpy(at))
        return OnHostResult(found.tokens, *(found.asked.arrays(len(at)) if found.asked else (None, None, None)))


class OnHostResult(NamedTuple):
    tokens: torch.Tensor
    logprobs: np.ndarray | None
    top_ids: np.ndarray | None
    top_logprobs: np.ndarray | None


def sampler(random_seed: int | None = 3, vocab: int = VOCAB, max_rows: int = 16) -> OnHost:
    return OnHost(SamplingRows(max_rows, vocab, CPU, random_seed))


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


PARAMETERS: list[dict[str, Any]] = [
    {"top_k": 1}, {"top_k": 7}, {"top_k": 64}, {"top_k": 65}, {"top_k": 5000},
    {"top_p": 0.05}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.999},
    {"top_p": 0.95, "temperature": 20.0}, {"min_p": 0.02}, {"min_p": 1.0}, {"temperature": 0.3},
    {"top_k": 50, "top_p": 0.8}, {"top_k": 50, "top_p": 0.8, "min_p": 0.1, "temperature": 1.5},
    {"top_p": 0.9, "min_p": 0.05},
]  # fmt: skip


@pytest.mark.parametrize("given", PARAMETERS, ids=str)
def test_what_may_be_drawn_and_how_often_is_what_transformers_warpers_leave(given: dict[str, Any]) -> None:
    row = logits_of(1, seed=5)
    # Rounding can move one token across the border of a nucleus: leave room around it.
    warpers = LogitsProcessorList([TemperatureLogitsWarper(given.get("temperature", 1.0))])
    if "top_k" in given:
        warpers.append(TopKLogitsWarper(given["top_k"]))
    if "top_p" in given:
        warpers.append(TopPLogitsWarper(given["top_p"]))
    if "min_p" in given:
        warpers.append(MinPLogitsWarper(given["min_p"]))
    wanted = warpers(torch.zeros(1, 1, dtype=torch.int64), row.clone())[0].softmax(-1)
    n = 4096
    grid = (torch.arange(n) + 0.5) / n  # an even grid of uniforms: shares are exact up to 1 / n per token
    drawn = torch.bincount(draw(row.expand(n, VOCAB), filters(n, **given), grid), minlength=VOCAB) / n
    assert (drawn - wanted).abs().max() <= 1.5 / n
    assert (drawn[wanted == 0] == 0).all()


def test_a_row_draws_the_same_whatever_else_is_in_the_batch() -> None:
    logits, u = logits_of(len(PARAMETERS), 9), torch.linspace(0.01, 0.99, len(PARAMETERS))
    each = [filters(1, **p) for p in PARAMETERS]
    together = Filters(*(np.concatenate([getattr(f, name) for f in each]) for name in Filters.__slots__))
    alone = [int(draw(logits[i : i + 1], f, u[i : i + 1])) for i, f in enumerate(each)]
    assert draw(logits, together, u).tolist() == alone


@pytest.mark.parametrize("vocab", [512, 1000, 49152])
def test_greedy_is_argmax(vocab: int) -> None:
    logits = logits_of(5, vocab=vocab)
    assert torch.equal(greedy(logits), logits.argmax(-1))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("given", [{"temperature": 0.0}, *PARAMETERS], ids=str)
def test_broken_logits_give_a_valid_and_repeatable_token(poison: float, given: dict[str, Any]) -> None:
    def once() -> list[int]:
        s = sampler()
        s.state.init([RowInit(0, seed=1, return_logprob=True, top_logprobs_num=2, **given)])
        broken = torch.full((1, VOCAB), poison)
        broken[0, 5:9] = 0.0 if np.isnan(poison) else poison
        out = s.sample(broken, rows(0))
        assert out.logprobs is not None
        assert np.isfinite(out.logprobs).all()
        return out.tokens.tolist()

    first = once()
    assert 0 <= first[0] < VOCAB
    assert first == once()


def test_uniforms_are_uniform_and_streams_are_unrelated() -> None:
    seeds = torch.arange(-50, 50).repeat_interleave(200)
    counters = torch.arange(200).repeat(100)
    u = uniforms(seeds, counters).view(100, 200)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(float(u.mean()) - 0.5) < 0.01
    share = torch.histc(u.flatten(), 10, 0, 1) / u.numel()
    assert (share - 0.1).abs().max() < 0.01
    for a, b in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:])):
        assert abs(float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])) < 0.03


def test_a_seeded_row_repeats_its_tokens_in_any_row_and_batch_and_after_a_retraction() -> None:
    steps = [logits_of(1, seed=i) for i in range(12)]
    init = {"seed": 1234, "temperature": 0.9, "top_p": 0.95}
    first = sampler(random_seed=1)
    first.state.init([RowInit(0, **init)])
    alone = [int(first.sample(step.clone(), rows(0)).tokens) for step in steps]

    second = sampler(random_seed=2)
    second.state.init([RowInit(7, **init), RowInit(2, temperature=1.0), RowInit(3, top_k=5)])
    batched = []
    for i, step in enumerate(steps):
        if i == 6:  # retracted: starts again in another row, with what it had generated
            second.state.init([RowInit(9, num_generated=6, **init)])
        own = 9 if i >= 6 else 7
        batched.append(int(second.sample(torch.cat((logits_of(2, 99 + i), step)), rows(2, 3, own)).tokens[2]))
    assert batched == alone


def test_rows_without_a_seed_differ_and_follow_the_engine_seed() -> None:
    def run(random_seed: int) -> list[list[int]]:
        s = sampler(random_seed)
        s.state.init([RowInit(0), RowInit(1)])
        return [s.sample(torch.zeros(2, VOCAB), rows(0, 1)).tokens.tolist() for _ in range(8)]

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert [a for a, _ in run(5)] != [b for _, b in run(5)]


def test_repetition_penalty_is_that_of_transformers_over_prompt_and_output() -> None:
    history, output = [3, 5, 5, 9], [11, 12]
    s = sampler()
    s.state.init([RowInit(4, temperature=0.0, repetition_penalty=1.7, history_ids=history, output_ids=output)])
    for step in range(6):
        logits = logits_of(1, seed=step)
        processor = RepetitionPenaltyLogitsProcessor(1.7)
        wanted = int(processor(torch.tensor([history + output]), logits.clone()).argmax())
        output.append(int(s.sample(logits, rows(4)).tokens))
        assert output[-1] == wanted


def test_presence_and_frequency_count_the_output_only() -> None:
    base = torch.zeros(1, VOCAB)
    base[0, :4] = torch.tensor([3.0, 2.5, 2.2, 2.1])
    s = sampler()
    s.state.init([RowInit(0, temperature=0.0, presence_penalty=0.6, frequency_penalty=0.3, history_ids=[0, 0, 0])])
    counts, seen = np.zeros(VOCAB), []
    for _ in range(12):
        expected = base[0].numpy() - 0.3 * counts - 0.6 * (counts > 0)
        seen.append(int(s.sample(base.clone(), rows(0)).tokens))
        assert seen[-1] == int(expected.argmax())
        counts[seen[-1]] += 1
    assert set(seen) == {0, 1, 2, 3}


def test_a_row_given_to_another_request_keeps_nothing() -> None:
    s = sampler()
    heavy = RowInit(
        0, temperature=0.0, repetition_penalty=5.0, presence_penalty=2.0, history_ids=[7], logit_bias={"8": 50.0},
        stop_ids=[7], min_new_tokens=9, return_logprob=True,
    )  # fmt: skip
    s.state.init([heavy])
    logits = torch.zeros(1, VOCAB)
    logits[0, 7], logits[0, 8] = 2.0, 1.0
    assert s.sample(logits.clone(), rows(0)).tokens.tolist() == [8]
    s.state.init([RowInit(0, temperature=0.0)])
    out = s.sample(logits.clone(), rows(0))
    assert out.tokens.tolist() == [7]
    assert out.logprobs is None
    s.state.init([RowInit(0, temperature=0.0, repetition_penalty=5.0, history_ids=[9])])
    assert s.sample(logits.clone(), rows(0)).tokens.tolist() == [7]


def test_only_the_rows_that_ask_are_biased_and_penalized() -> None:
    s = sampler()
    s.state.init([
        RowInit(0, temperature=0.0), RowInit(1, temperature=0.0, logit_bias={"3": 100.0, "4": -100.0}),
        RowInit(2, temperature=0.0, logit_bias={"0": 50.0}),
        RowInit(3, temperature=0.0, repetition_penalty=9.0, history_ids=[4]),
    ])  # fmt: skip
    logits = torch.zeros(4, VOCAB)
    logits[:, 4], logits[:, 6] = 5.0, 4.0
    assert s.sample(logits, rows(0, 1, 2, 3)).tokens.tolist() == [4, 3, 0, 6]


def test_many_rows_with_penalties_keep_their_counts_apart() -> None:
    s = sampler()
    s.state.init([RowInit(r, temperature=0.0, repetition_penalty=2.0, history_ids=[r]) for r in range(12)])
    logits = torch.zeros(12, VOCAB)
    logits[:, :12] = 1.0
    logits[torch.arange(12), torch.arange(12)] = 1.5
    logits[:, 20] = 0.9
    picked = s.sample(logits, np.arange(12)).tokens.tolist()
    assert all(picked[r] != r for r in range(12))


def test_stop_ids_stay_masked_until_the_minimum_is_reached() -> None:
    s = sampler()
    s.state.init([RowInit(0, temperature=0.0, min_new_tokens=3, stop_ids=[2, 6], num_generated=1)])
    logits = torch.zeros(1, VOCAB)
    logits[0, 2], logits[0, 6], logits[0, 9] = 3.0, 2.0, 1.0
    assert [int(s.sample(logits.clone(), rows(0)).tokens) for _ in range(3)] == [9, 9, 2]


def test_logprobs_are_of_the_raw_distribution_and_padded_for_those_who_ask_for_fewer() -> None:
    s = sampler()
    s.state.init([
        RowInit(0, temperature=0.0),
        RowInit(1, temperature=0.5, seed=1, logit_bias={"7": 90.0}, return_logprob=True, top_logprobs_num=1),
        RowInit(2, temperature=0.0, return_logprob=True, top_logprobs_num=3),
    ])  # fmt: skip
    logits = logits_of(3, 4)
    wanted = logits.double().log_softmax(-1)
    out = s.sample(logits.clone(), rows(0, 1, 2))
    assert out.logprobs is not None
    assert out.top_ids is not None
    assert out.top_logprobs is not None
    assert out.tokens[1] == 7
    assert out.logprobs[0] == 0
    assert out.logprobs[1:] == pytest.approx([float(wanted[1, 7]), float(wanted[2].max())], abs=1e-5)
    assert out.top_ids[0].tolist() == [-1, -1, -1]
    assert out.top_ids[1].tolist() == [int(wanted[1].argmax()), -1, -1]
    assert out.top_ids[2].tolist() == wanted[2].topk(3).indices.tolist()
    assert out.top_logprobs[2] == pytest.approx(wanted[2].topk(3).values.numpy(), abs=1e-5)


def test_an_impossible_token_has_a_finite_logprob() -> None:
    logits = torch.tensor([[0.0, -float("inf"), 0.0]])
    assert float(logprobs_of(logits, torch.tensor([1]), 3).chosen) == LEAST

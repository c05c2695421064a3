"""The sampler of the GPU gives what the sampler of operators gives, wherever no random number is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from services.worker.sampling.fused import FusedSampler
from services.worker.sampling.masks import MaskUpdate
from services.worker.sampling.rows import SamplingRows
from services.worker.sampling.sampler import Sampler, TorchSampler
from shared.messages.step import RowInit, StepMasks

VOCAB, ROWS, SLOTS = 100, 6, 4
GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.7, "frequency_penalty": 0.4, "presence_penalty": 0.3,
                  "history_ids": [3, 5, 5], "output_ids": [7, 7, 9]},
    "bias": {"logit_bias": {"4": 2.5, "17": -100.0}},
    "minimum": {"min_new_tokens": 3, "stop_ids": list(range(40)), "num_generated": 1},
    "logprob": {"return_logprob": True},
    "top": {"return_logprob": True, "top_logprobs_num": 3, "logit_bias": {"8": 4.0}},
}  # fmt: skip


def both(device: torch.device) -> tuple[Sampler, Sampler]:
    return FusedSampler(ROWS, VOCAB, device, 3, SLOTS), TorchSampler(SamplingRows(ROWS, VOCAB, device, 3, SLOTS))


def sample(sampler: Sampler, logits: torch.Tensor, *rows: int) -> tuple[list[int], list[Any]]:
    numbers = np.array(rows, np.int64)
    found = sampler.sample(logits.clone(), numbers, torch.from_numpy(numbers).to(logits.device))
    asked = [None] * 3 if found.asked is None else found.asked.fetch().arrays(len(rows))
    return found.tokens.tolist(), list(asked)


def test_greedy_rows_with_every_adjustment_get_the_same_tokens_and_logprobs_for_several_steps(
    device: torch.device,
) -> None:
    ours, theirs = both(device)
    inits = [RowInit(row, temperature=0.0, **given) for row, given in enumerate(GREEDY.values())]
    order = np.random.default_rng().permutation(ROWS).tolist()
    for sampler in (ours, theirs):
        sampler.init(inits[:4])
        sampler.init(inits[4:])
    for _ in range(4):
        logits = torch.randn(ROWS, VOCAB, device=device) * 3
        (got, got_asked), (want, want_asked) = (sample(s, logits, *order) for s in (ours, theirs))
        assert got == want
        for a, b in zip(got_asked, want_asked, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_masks_and_forced_tokens_count_alike_in_both(device: torch.device) -> None:
    rng, samplers = np.random.default_rng(), both(device)
    inits = [RowInit(row, temperature=0.0, **given) for row, given in enumerate(GREEDY.values())]
    for sampler in samplers:
        sampler.init(inits)
    for _ in range(4):
        masks = rng.integers(-(2**31), 2**31, (2, -(-VOCAB // 32)), dtype=np.int64).astype(np.int32)
        rows, slots = rng.permutation(ROWS)[:3].astype(np.int32), np.array([1, 3, -1], np.int32)
        message = StepMasks("e", "s", 0, rows, slots, new_slots=np.array([3, 1], np.int32), new_masks=masks)
        forced, counts = np.array([0, 1]), np.array([1, 2])
        tokens, logits = rng.integers(0, VOCAB, 3), torch.randn(ROWS, VOCAB, device=device) * 3
        found = []
        for sampler in samplers:
            sampler.count_forced(forced, counts, tokens)
            sampler.set_masks(MaskUpdate([message], ROWS, SLOTS, VOCAB))
            found.append(sample(sampler, logits, *range(ROWS))[0])
        assert found[0] == found[1]
        allowed = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
        assert allowed[1, found[0][rows[0]]]
        assert allowed[0, found[0][rows[1]]]


def test_a_row_given_to_another_request_keeps_nothing_of_the_last_one(device: torch.device) -> None:
    ours, _ = both(device)
    logits = torch.randn(1, VOCAB, device=device)
    best = int(logits.argmax())
    heavy = {"logit_bias": {str(best): -100.0}, "repetition_penalty": 3.0, "history_ids": [best], "temperature": 0.0}
    ours.init([RowInit(2, min_new_tokens=9, stop_ids=[best], return_logprob=True, **heavy)])
    assert sample(ours, logits, 2)[0] != [best]
    ours.init([RowInit(2, temperature=0.0)])
    assert sample(ours, logits, 2) == ([best], [None, None, None])


def test_more_penalised_and_biased_rows_than_a_bank_has_room_for(device: torch.device) -> None:
    ours, _ = both(device)
    logits = torch.zeros(ROWS, VOCAB, device=device)
    logits[:, 50] = 1.0
    ours.init([
        RowInit(row, temperature=0.0, logit_bias={str(row): 5.0}, frequency_penalty=10.0) for row in range(ROWS)
    ])  # fmt: skip
    assert sample(ours, logits, *range(ROWS))[0] == list(range(ROWS))
    assert sample(ours, logits, *range(ROWS))[0] == [50] * ROWS  # the biased token was counted


@pytest.mark.parametrize("filters", [{}, {"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.05}], ids=str)
def test_a_seeded_row_repeats_its_tokens_in_any_row_and_after_a_retraction(
    filters: dict[str, Any], device: torch.device
) -> None:
    logits = torch.randn(1, VOCAB, device=device)
    first, second = both(device)[0], both(device)[0]
    first.init([RowInit(0, seed=2**64 - 5, **filters)])
    tokens = [sample(first, logits, 0)[0][0] for _ in range(6)]
    assert len(set(tokens)) > 1
    second.init([RowInit(4, seed=2**64 - 5, num_generated=2, **filters)])
    assert [sample(second, logits, 4)[0][0] for _ in range(4)] == tokens[2:]


def test_unseeded_rows_differ_and_a_random_seed_makes_them_repeat(device: torch.device) -> None:
    logits = torch.zeros(2, VOCAB, device=device)

    def run(random_seed: int | None) -> list[list[int]]:
        sampler = FusedSampler(ROWS, VOCAB, device, random_seed)
        sampler.init([RowInit(0), RowInit(1)])
        return [sample(sampler, logits, 0, 1)[0] for _ in range(6)]

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert run(None) != run(None)
    assert [a for a, _ in run(5)] != [b for _, b in run(5)]

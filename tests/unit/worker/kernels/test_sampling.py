"""Sampling kernels against the fp64 reference."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from services.worker.kernels import sampling_table as columns
from services.worker.kernels.reference.sampling import RowParams, kept_distribution, uniform
from services.worker.kernels.sampling import sample
from services.worker.kernels.sampling_workspace import CANDIDATES, SamplingWorkspace, sampling_workspace
from tests.unit.worker.kernels.closeness import POISON
from tests.unit.worker.kernels.sampling_case import assert_drawn, table_of, write_row

VOCAB = 5003  # three slices, the last one partial


def poisoned_workspace(rows: int, vocab: int, device: torch.device) -> SamplingWorkspace:
    workspace = sampling_workspace(rows, vocab, device)
    for buffer in workspace:
        buffer.fill_(POISON if buffer.is_floating_point() else 2**30)
    return workspace


def draw_all(logits: torch.Tensor, params: list[RowParams]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample with rows in shuffled places of the table; checks the draws, the logprobs and the advanced state."""
    device, (num_rows, vocab) = logits.device, logits.shape
    rows = torch.randperm(num_rows + 3)[:num_rows].to(torch.int32)
    table = table_of(params, rows, num_rows + 3, vocab, device)
    counts = table.counts.clone()
    tokens = torch.full((num_rows,), -7, dtype=torch.int32, device=device)
    logprobs = torch.full((num_rows,), POISON, device=device)
    sample(logits, rows.to(device), table, poisoned_workspace(num_rows + 1, vocab, device), tokens, logprobs)
    for i, row in enumerate(params):
        assert_drawn(int(tokens[i]), logits[i], row)
        state = table.ints[int(rows[i])]
        assert state[columns.STEP.value] == row.step + 1
        assert state[columns.LAST_TOKEN.value] == tokens[i]
        if state[columns.COUNT_SLOT.value] >= 0:
            counts[i, int(tokens[i])] += 1
    assert torch.equal(table.counts, counts)
    chosen = logits.double().nan_to_num(nan=float("-inf")).log_softmax(-1).gather(1, tokens.long()[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), chosen, rtol=1e-5, atol=3e-5)
    return tokens, logprobs


def peaked(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Logits with a few likely tokens, like a language model's."""
    logits = torch.randn(rows, vocab, device=device) * 2
    logits[:, torch.randperm(vocab, device=device)[:20]] += 9
    return logits.to(dtype)


def seeded(row: RowParams) -> RowParams:
    return dataclasses.replace(row, seed=random.getrandbits(63) - (1 << 62), step=random.randrange(5000))


FILTERS = [
    RowParams(temperature=0.0),
    RowParams(temperature=0.7),
    RowParams(top_k=1),
    RowParams(top_k=40),
    RowParams(top_p=0.9),
    RowParams(top_p=1e-6),
    RowParams(min_p=0.05),
    RowParams(temperature=1.3, top_k=50, top_p=0.8),
    RowParams(temperature=0.6, top_k=20, top_p=0.95, min_p=0.1),
    RowParams(temperature=2.0, top_k=2000, top_p=0.99),
    RowParams(temperature=0.001, top_p=0.9),
    RowParams(temperature=5.0, min_p=0.5, top_k=3),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_filter_draws_what_the_reference_draws(dtype: torch.dtype, device: torch.device) -> None:
    params = [seeded(row) for row in FILTERS]
    draw_all(peaked(len(params), VOCAB, dtype, device), params)


def test_flat_rows_overflow_the_candidates_and_are_still_exact(device: torch.device) -> None:
    params = [
        seeded(row)
        for row in [
            RowParams(top_p=0.97),
            RowParams(top_k=CANDIDATES + 500),
            RowParams(top_k=CANDIDATES + 900, top_p=0.98),
            RowParams(min_p=0.01),
        ]
    ]
    draw_all(torch.randn(len(params), CANDIDATES + 1500, device=device) * 0.3, params)


def test_equal_logits_are_kept_in_ascending_id(device: torch.device) -> None:
    logits = torch.zeros(12, 3000, device=device)
    logits[:, 5::7] = 1.0
    params = [seeded(RowParams(top_k=30)) for _ in range(6)] + [seeded(RowParams(top_p=0.01)) for _ in range(6)]
    tokens, _ = draw_all(logits, params)
    assert {int(token) for token in tokens[:6]} <= set(range(5, 5 + 7 * 30, 7))


def test_penalties_bias_masks_and_bans_apply_before_the_draw(device: torch.device) -> None:
    allowed = torch.rand(VOCAB) < 0.3
    everything = RowParams(
        top_p=0.9, repetition=1.7, presence=0.5, frequency=0.2,
        output_ids=[3, 3, 3, 8], prompt_ids=[8, 9], bias={4: 3.0, 9: -100.0, 10: 5.5}, allowed=allowed,
    )  # fmt: skip
    params = [
        seeded(everything),
        dataclasses.replace(everything, temperature=0.0),
        seeded(RowParams(frequency=2.0, output_ids=[1] * 30)),
        RowParams(temperature=0.0, bias={77: 100.0}),
        RowParams(temperature=0.0, allowed=torch.arange(VOCAB) == VOCAB - 1),
        seeded(RowParams(allowed=torch.arange(VOCAB) == 4000)),
        RowParams(temperature=0.0, bias={77: 100.0}, banned_ids=[77, 78]),
    ]
    tokens, _ = draw_all(peaked(len(params), VOCAB, torch.float32, device), params)
    assert tokens[3:6].tolist() == [77, VOCAB - 1, 4000]


def test_bans_end_with_the_minimum_step(device: torch.device) -> None:
    row = RowParams(temperature=0.0, bias={7: 100.0}, banned_ids=[7])
    rows = torch.zeros(1, dtype=torch.int32)
    table = table_of([row], rows, 1, 100, device)
    workspace = poisoned_workspace(1, 100, device)
    tokens, logprobs = torch.zeros(1, dtype=torch.int32, device=device), torch.zeros(1, device=device)
    drawn = []
    for _ in range(2):
        sample(torch.randn(1, 100, device=device), rows.to(device), table, workspace, tokens, logprobs)
        drawn.append(int(tokens))
    assert drawn[0] != 7
    assert drawn[1] == 7


def test_a_row_draws_the_same_token_whatever_else_is_in_the_batch(device: torch.device) -> None:
    row = seeded(RowParams(top_p=0.95))
    logits = peaked(3, VOCAB, torch.float32, device)
    alone, _ = draw_all(logits[:1], [row])
    together, _ = draw_all(logits[[1, 0, 2]], [seeded(RowParams(top_k=4)), row, seeded(RowParams())])
    assert alone[0] == together[1]


def test_padding_rows_write_nothing_and_nan_logits_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((2, 50), float("nan"), device=device)
    logits[1, 13] = 0.0
    table = table_of([RowParams()], torch.zeros(1, dtype=torch.int32), 1, 50, device)
    rows = torch.tensor([-1, 0], dtype=torch.int32, device=device)
    tokens = torch.full((2,), -7, dtype=torch.int32, device=device)
    logprobs = torch.full((2,), 5.0, device=device)
    sample(logits, rows, table, poisoned_workspace(2, 50, device), tokens, logprobs)
    assert tokens.tolist() == [-7, 13]
    assert logprobs.tolist() == [5.0, 0.0]


@pytest.mark.parametrize("row", [RowParams(), RowParams(top_p=0.5), RowParams(top_k=3), RowParams(temperature=0.0)])
def test_a_row_with_no_allowed_token_gives_token_0(row: RowParams, device: torch.device) -> None:
    row = dataclasses.replace(row, allowed=torch.zeros(60, dtype=torch.bool))
    rows = torch.zeros(1, dtype=torch.int32, device=device)
    table = table_of([row], rows, 1, 60, device)
    tokens, logprobs = torch.full((1,), -7, dtype=torch.int32, device=device), torch.zeros(1, device=device)
    sample(torch.randn(1, 60, device=device), rows, table, poisoned_workspace(1, 60, device), tokens, logprobs)
    assert tokens.tolist() == [0]


def test_draws_follow_the_distribution(device: torch.device) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5], device=device)
    row = RowParams(top_k=4, top_p=0.95)
    table = table_of([row], torch.zeros(1, dtype=torch.int32), 64, 5, device)
    for state in range(64):
        write_row(table, state, 0, dataclasses.replace(row, seed=state * 7919 + 1))
    tokens, logprobs = torch.zeros(64, dtype=torch.int32, device=device), torch.zeros(64, device=device)
    workspace = poisoned_workspace(64, 5, device)
    rows = torch.arange(64, dtype=torch.int32, device=device)
    seen = torch.zeros(5)
    rounds = 32 if device.type == "cuda" else 1
    for _ in range(rounds):
        sample(logits.repeat(64, 1), rows, table, workspace, tokens, logprobs)
        seen += torch.bincount(tokens.cpu(), minlength=5)
    expected = kept_distribution(logits.cpu(), row) * 64 * rounds
    deviation = ((seen - expected) ** 2 / expected.clamp_min(1e-9))[expected > 0].sum()
    assert seen[expected == 0].sum() == 0
    assert deviation < 25, f"chi-square {float(deviation):.1f} of 3 degrees of freedom"


def test_philox_is_the_published_function() -> None:
    assert int(uniform(0, 0) * (1 << 24)) == 0x6627E8D5 >> 8

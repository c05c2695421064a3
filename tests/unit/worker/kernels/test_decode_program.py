"""Decode steps that the device plans by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.attention.shared_prefix import SharedPrefixes
from services.worker.decode_program import DecodeProgram, batch_sizes
from services.worker.engine import Engine
from services.worker.kernels.decode_inputs import BLOCK, decode_inputs, decode_inputs_buffer
from services.worker.rows import Rows
from shared.messages.step import RowInit
from tests.unit.worker.driver import Driver, Extend, make_engine

Checkpoint = Callable[[str], tuple[Path, Any]]


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("count", [1, 5, BLOCK, BLOCK + 3])
def test_rows_are_fed_their_last_token_at_their_next_position(count: int, page_size: int, device: torch.device) -> None:
    most, pages = 2 * BLOCK, 40 // page_size + 1
    table = torch.randint(1, 1000, (most, pages), dtype=torch.int32, device=device)
    lengths = torch.randint(0, 40, (most,), device=device)
    deltas = torch.randint(-30, 30, (most,), device=device)
    tokens = torch.randint(0, 500, (most,), device=device)
    rows = torch.randperm(most, device=device)[:count].int()
    rows[torch.rand(count, device=device) < 0.3] = -1
    real = rows >= 0
    row = rows[real].long()
    before = lengths.clone()
    out = decode_inputs_buffer(most, device).first(count)
    for part in out:
        part.fill_(-77)
    decode_inputs(rows, lengths, deltas, tokens, table, out, page_size)
    position = before[row]
    page = table[row, position // page_size].long()
    assert torch.equal(out.ids[real], tokens[row])
    assert torch.equal(out.positions[real], position + deltas[row])
    assert torch.equal(out.slots[real], page * page_size + position % page_size)
    assert torch.equal(out.seq_lens[real].long(), position + 1)
    for part, padding in zip(out, (0, 0, -1, 0), strict=True):
        assert (part[~real] == padding).all()
    before[row] += 1
    assert torch.equal(lengths, before)


@pytest.mark.parametrize("most", [1, 2, 7, 64, 100, 256, 1000])
def test_sizes_rise_to_the_most_rows_and_waste_little(most: int) -> None:
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, most)
    for rows in range(1, most + 1):
        size = next(size for size in sizes if size >= rows)
        assert size <= max(rows * 1.6, rows + 2)


def engine(checkpoint: Checkpoint, backend: str, device: torch.device, **flags: Any) -> Engine:
    return make_engine(
        checkpoint("qwen3")[0], device=device.type, attention_backend=backend, dtype="float32",
        max_running_requests=4, max_total_tokens=512, **flags,
    )  # fmt: skip


@pytest.mark.usefixtures("small_programs")
@pytest.mark.parametrize("page_size", [1, 16])
def test_rows_that_come_go_and_pause_get_the_tokens_that_operators_give(
    checkpoint: Checkpoint, page_size: int, device: torch.device
) -> None:
    """Decode-only steps of changing rows, between steps that extend and rewind."""
    outputs = []
    for backend in ("triton", "torch"):
        driver = Driver(engine(checkpoint, backend, device, page_size=page_size))
        greedy = [RowInit(row, temperature=0.0, return_logprob=True) for row in range(4)]
        runs = [
            driver.run([Extend(0, [5, 6, 7]), Extend(1, [9, 8])], new=greedy[:2]),
            driver.run(decode=[1, 0]),
            driver.run(decode=None),
            driver.run([Extend(3, [4, 4, 4, 2, 1])], decode=[0], new=greedy[3:]),
            driver.run(decode=[3, 0, 1]),
            driver.run([Extend(3, [7, 3], start=2)], decode=[]),  # back over what was generated
            driver.run(decode=[0, 3]),
            driver.run([Extend(1, [11, 12])], new=greedy[1:2]),  # the row has a new owner
            driver.run(decode=[3, 1]),
        ]
        outputs.append(runs)
    for got, want in zip(*outputs, strict=True):
        assert got.tokens.tolist() == want.tokens.tolist()
        np.testing.assert_allclose(got.logprobs, want.logprobs, rtol=1e-3, atol=1e-3)


class Echo:
    """A model whose hidden states are its inputs, and an attention that notes what it was told of sharing."""

    name = "echo"

    def __init__(self) -> None:
        self.found: SharedPrefixes | None = None
        self.told: list[list[list[int]] | None] = []

    def find_shared(self, rows: np.ndarray) -> SharedPrefixes | None:
        return self.found

    def attend_decode(self, rows: torch.Tensor, seq_lens: torch.Tensor, slots: torch.Tensor, sharing: Any) -> Any:
        self.told.append(None if sharing is None else [part.tolist() for part in sharing])

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, attend: Any) -> torch.Tensor:
        return torch.stack((ids, positions), dim=1)


class Planner:
    """Remembers what it is told; makes plans of up to 50 tokens a row."""

    def __init__(self) -> None:
        self.plans: list[tuple[list[int], int]] = []

    def fits(self, seq_lens: np.ndarray) -> bool:
        return bool(seq_lens.max() <= 50)

    def plan_decode(self, seq_lens: np.ndarray, size: int) -> None:
        self.plans.append((seq_lens.tolist(), size))


def test_a_planner_on_the_host_is_told_the_lengths_of_every_step_without_sharing(device: torch.device) -> None:
    rows, numbers = Rows(8, 4, 16, device), np.array([5, 0, 3], np.int64)
    rows.seq_lens.put(numbers, np.array([20, 7, 9]))
    echo, planner = Echo(), Planner()
    program = DecodeProgram(echo, echo, rows, planner)  # type: ignore[arg-type]
    program.run(numbers)
    program.run(numbers)
    program.run(numbers[:1])
    assert planner.plans == [([21, 8, 10], 4), ([22, 9, 11], 4), ([23], 1)]
    echo.found = SharedPrefixes(np.array([2, 0]), np.array([2]), np.array([16]))
    program.run(numbers)
    assert len(planner.plans) == 3
    assert program.fits(numbers)
    rows.seq_lens.put(numbers[:1], np.array([50]))
    assert not program.fits(numbers)


def test_a_batch_that_shares_prefixes_has_a_program_of_its_own(device: torch.device) -> None:
    rows, numbers = Rows(8, 4, 16, device), np.array([5, 0, 3], np.int64)
    rows.last_token.copy_(100 + torch.arange(8, device=device))
    echo = Echo()
    program = DecodeProgram(echo, echo, rows)  # type: ignore[arg-type]
    program.run(numbers)
    echo.found = SharedPrefixes(np.array([2, 0]), np.array([2]), np.array([128]))
    hidden, index = program.run(numbers)  # nothing said that the batch has changed
    program.forget()
    program.run(numbers)
    assert index.tolist() == numbers.tolist()
    assert hidden[:3].tolist() == [[100 + row, 1] for row in numbers.tolist()]
    assert echo.told[:2] == [None, None]
    starts, chunk_of, place_of, members, cu_members, leaders, lens = echo.told[2] or []
    assert starts == [128, 0, 128, *[0] * 5]
    assert chunk_of == [0, -1, 0, *[-1] * 5]
    assert (place_of[0], place_of[2]) == (1, 0)
    assert members[:2] == [2, 0]
    assert cu_members == [0, *[2] * 8]
    assert leaders[0] == 3
    assert lens == [128, *[0] * 7]

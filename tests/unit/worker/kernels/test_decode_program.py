"""Decode steps that the device plans by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.decode_program import DecodeProgram, batch_sizes, prefix_order
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
    tokens = torch.randint(0, 500, (most,), device=device)
    rows = torch.randperm(most, device=device)[:count].int()
    rows[torch.rand(count, device=device) < 0.3] = -1
    real = rows >= 0
    row = rows[real].long()
    before = lengths.clone()
    out = decode_inputs_buffer(most, device).first(count)
    for part in out:
        part.fill_(-77)
    decode_inputs(rows, lengths, tokens, table, out, page_size)
    position = before[row]
    page = table[row, position // page_size].long()
    assert torch.equal(out.ids[real], tokens[row])
    assert torch.equal(out.positions[real], position)
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


@pytest.mark.parametrize(("groups", "each", "together"), [(3, 4, 3), (16, 16, 49), (5, 1, 2), (7, 3, 100), (1, 9, 4)])
def test_rows_with_a_common_prefix_are_attended_together(groups: int, each: int, together: int) -> None:
    pages = np.random.default_rng().permutation(np.repeat(np.arange(groups), each) + 1)
    order = prefix_order(pages, together)
    assert sorted(order.tolist()) == list(range(len(pages)))
    if len(pages) <= together or each == 1:
        assert (np.diff(order) == 1).all()
        return
    turns = -(-len(pages) // together)
    for turn in range(turns):  # what the workers, `turns` rows each, have in hand at the same time
        at_once = pages[order[turn::turns]]
        assert len(set(at_once.tolist())) <= -(-len(at_once) // each) + 2


def engine(checkpoint: Checkpoint, backend: str, device: torch.device, **flags: Any) -> Engine:
    return make_engine(
        checkpoint("qwen3")[0], device=device.type, attention_backend=backend, dtype="float32",
        max_running_requests=4, max_total_tokens=512, **flags,
    )  # fmt: skip


class Echo:
    """A model whose hidden states are its inputs, and an attention that works on two rows at a time."""

    name = "echo"

    def attend_decode(self, rows: torch.Tensor, seq_lens: torch.Tensor, slots: torch.Tensor) -> Any:
        return None

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, attend: Any) -> torch.Tensor:
        return torch.stack((ids, positions), dim=1)


def test_rows_that_share_a_prefix_are_reordered_for_the_device_only(device: torch.device) -> None:
    rows = Rows(8, 4, 16, device)
    numbers = np.array([5, 0, 3, 7, 2, 6], np.int64)
    rows.append_pages(numbers, np.array([9, 4, 9, 4, 9, 4]), np.ones(6, np.int64))
    rows.seq_lens.put(numbers, numbers + 1)
    rows.last_token.copy_(100 + torch.arange(8, device=device))
    echo = Echo()
    hidden, index = DecodeProgram(echo, echo, rows, 2).run(numbers)  # type: ignore[arg-type]
    assert index.tolist() == numbers.tolist()
    assert hidden[:6].tolist() == [[100 + row, row + 1] for row in numbers.tolist()]
    assert rows.lengths[numbers].tolist() == (numbers + 2).tolist()


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

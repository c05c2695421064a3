"""Decode steps that the device plans by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.decode_program import batch_sizes
from services.worker.engine import Engine
from services.worker.kernels.decode_inputs import BLOCK, decode_inputs, decode_inputs_buffer
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


def engine(checkpoint: Checkpoint, backend: str, device: torch.device, **flags: Any) -> Engine:
    return make_engine(
        checkpoint("qwen3")[0], device=device.type, attention_backend=backend, dtype="float32",
        max_running_requests=4, max_total_tokens=512, **flags,
    )  # fmt: skip


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


def test_rows_that_share_a_prefix_get_the_tokens_that_operators_give(
    checkpoint: Checkpoint, device: torch.device
) -> None:
    """Eleven rows begin with the same 448 tokens' pages; then one of them belongs to a request with another prompt."""
    shared, count, page_size = 448, 11, 16
    rng = np.random.default_rng(3)
    prefix = rng.integers(3, 300, shared).tolist()
    tails = [rng.integers(3, 300, 1 + row % 3).tolist() for row in range(count)]
    pages, outputs = shared // page_size, []
    for backend in ("triton", "torch"):
        driver = Driver(
            make_engine(
                checkpoint("qwen3")[0],
                device=device.type,
                attention_backend=backend,
                dtype="float32",
                max_running_requests=count,
                max_total_tokens=4096,
                page_size=page_size,
            )
        )
        first = driver.run([Extend(0, prefix + tails[0])], new=[RowInit(0, temperature=0.0)])
        others = range(1, count)
        rest = driver.run(
            [Extend(row, tails[row], start=shared) for row in others],
            new=[RowInit(row, temperature=0.0) for row in others],
            shared_pages=dict.fromkeys(others, driver.pages_of[0][:pages]),
        )
        found = driver.engine._attention.find_shared(np.arange(count)) if backend == "triton" else None  # type: ignore[attr-defined]
        runs = [first, rest, driver.run(decode=list(range(count))), driver.run(decode=None)]
        assert backend == "torch" or found is not None
        runs.append(driver.run([Extend(5, [9, 8, 7])], decode=[], new=[RowInit(5, temperature=0.0)]))
        runs.append(driver.run(decode=list(range(count))))
        outputs.append([run.tokens.tolist() for run in runs])
    assert outputs[0] == outputs[1]

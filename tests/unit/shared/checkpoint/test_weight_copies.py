"""Copies cut into chunks and made by several threads are the same copies, and their failures come in order."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import Any

import pytest
import torch

from shared.checkpoint.checkpoint_names import Index
from shared.checkpoint.weight_copies import LoadProgress, WeightCopies, chunks
from shared.log import Log

CPU = torch.device("cpu")
CHUNK_BYTES = 256
LOG = Log(logging.getLogger("rhizome.test"), {})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "index"),
    [
        ((40, 33), (slice(None), slice(None))),
        ((40, 33), (slice(7, 31), slice(None))),
        ((40, 33), (slice(None), slice(5, 20))),
        ((6, 40, 33), (4, slice(20, 40), slice(3, 30))),
        ((700,), (slice(100, 600),)),
        ((1, 300), (slice(None), slice(None))),
        ((), ()),
    ],
    ids=["whole", "rows", "columns", "expert", "vector", "one-large-row", "number"],
)
def test_a_copy_in_chunks_is_the_copy(shape: tuple[int, ...], index: Index, threads: int) -> None:
    source = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    into = torch.full_like(source[index], -1.0, dtype=torch.float32)
    with WeightCopies(CPU, into.nbytes, LOG, threads, CHUNK_BYTES) as copies:
        copies.add(source, index, into)
        copies.wait()
    assert torch.equal(into, source[index].float())


def test_rows_that_are_written_come_with_their_places() -> None:
    source, found = torch.randn(6, 40, 33), torch.full((20, 27), -1.0)
    written: list[slice] = []

    def write(values: torch.Tensor, rows: slice) -> None:
        found[rows] = values * 2
        written.append(rows)

    with WeightCopies(CPU, found.nbytes, LOG, 3, 8 * CHUNK_BYTES) as copies:
        copies.add(source, (4, slice(20, 40), slice(3, 30)), found, write)
        copies.wait()
    assert torch.equal(found, source[4, 20:40, 3:30] * 2)
    assert len(written) > 2


def test_chunks_are_small_and_follow_one_another() -> None:
    into = torch.arange(40 * 33, dtype=torch.float32).view(40, 33)
    parts = list(chunks((4, slice(20, 60), slice(3, 36)), into, CHUNK_BYTES))
    assert len(parts) > 10
    assert all(rows.nbytes <= CHUNK_BYTES for _, rows in parts)
    assert torch.equal(torch.cat([rows for _, rows in parts]), into)
    starts = [index[1].start for index, _ in parts]  # type: ignore[union-attr]
    assert starts == list(range(20, 60, starts[1] - starts[0]))


class Broken:
    """A tensor whose part cannot be read, once others have been."""

    def __init__(self, name: str, after: threading.Event | None = None) -> None:
        self._name, self._after = name, after

    def __getitem__(self, index: Any) -> torch.Tensor:
        assert self._after is None or self._after.wait(20)
        raise OSError(self._name)


class Telling:
    """A tensor that tells when it is read."""

    def __init__(self) -> None:
        self.read = threading.Event()

    def __getitem__(self, index: Any) -> torch.Tensor:
        self.read.set()
        return torch.ones(4)


def test_the_first_failure_in_order_is_told_whichever_thread_fails_first() -> None:
    into, last = torch.zeros(4), Telling()
    with WeightCopies(CPU, 12, LOG, 2, CHUNK_BYTES) as copies:
        copies.add(Broken("first", after=last.read), (slice(None),), into)
        copies.add(Broken("second"), (slice(None),), into)
        copies.add(last, (slice(None),), into)
        with pytest.raises(OSError, match="first"):
            copies.wait()


def test_threads_leave_torchs_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with WeightCopies(CPU, 16, LOG, 2, CHUNK_BYTES) as copies:
            copies.add(torch.ones(4), (slice(None),), torch.zeros(4))
            copies.wait()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_progress_is_told_at_most_once_a_second_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    seconds = itertools.count(0.0, 0.4)
    progress = LoadProgress(2560, LOG, lambda: next(seconds))
    with caplog.at_level("INFO", "rhizome.test"):
        for _ in range(10):
            progress.add(256)
        progress.finish()
    fields = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [round(f["share"], 2) for f in fields[:-1]] == [0.3, 0.6, 0.9]
    assert fields[0]["mb_per_s"] == pytest.approx(3 * 256 / 1.2 / 1e6)
    assert (caplog.messages[-1], fields[-1]["bytes"]) == ("weights", 2560)

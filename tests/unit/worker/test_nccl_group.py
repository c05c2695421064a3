"""The group of ranks on GPUs, with gloo in NCCL's place: what goes which way, and that all ranks decide alike."""

from __future__ import annotations

import logging
import multiprocessing
import socket
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from services.worker.nccl_group import NcclGroup
from services.worker.symmetric_memory import LIMITS, Way, way_of
from shared.log import Log

CPU = torch.device("cpu")
LOG = Log(logging.getLogger("rhizome.test"), {})


class FakeMemory:
    """Sums over the group as symmetric memory would, and counts."""

    def __init__(self, group: dist.ProcessGroup, *, right: bool = True) -> None:
        self._group, self._right = group, right
        self.sums: list[tuple[Way, int]] = []

    def all_reduce(self, x: Tensor, way: Way) -> Tensor:
        self.sums.append((way, x.nbytes))
        dist.all_reduce(x, group=self._group)
        return x

    def adds_up(self) -> bool:
        return self._right


def values_of(group: NcclGroup) -> dict[str, Any]:
    """What every collective gives this rank."""
    rank = group.rank
    uneven = group.gather_columns(torch.full((2, 3 - rank), float(rank)), [3, 2])
    even = group.gather_columns(torch.full((2, 2), float(rank)), [2, 2])
    group.wait_for_all(20)
    return {
        "small": group.all_reduce(torch.full((4, 8), rank + 1.0)).unique().tolist(),
        "large": group.all_reduce(torch.full((max(LIMITS[2]) // 4 + 4,), rank + 1.0)).unique().tolist(),
        "whole numbers": group.all_reduce(torch.full((4,), rank + 1)).tolist(),
        "first": group.from_first(torch.tensor([rank + 7])).tolist(),
        "uneven": None if uneven is None else uneven.tolist(),
        "even": None if even is None else even.tolist(),
        "integers": group.all_integers([rank, 5]),
        "texts": group.all_texts(f"rank {rank}"),
    }


def with_memory(rank: int, address: str) -> dict[str, Any]:
    made: list[FakeMemory] = []

    def share(group: dist.ProcessGroup, device: torch.device) -> FakeMemory:
        made.append(FakeMemory(group))
        return made[0]

    values = values_of(NcclGroup(address, rank, 2, CPU, LOG, backend="gloo", share_memory=share))
    return values | {"sums": made[0].sums}


def with_memory_on_rank_0_only(rank: int, address: str) -> dict[str, Any]:
    made: list[FakeMemory] = []

    def share(group: dist.ProcessGroup, device: torch.device) -> FakeMemory:
        if rank == 1:
            raise RuntimeError("no peer access")
        made.append(FakeMemory(group))
        return made[0]

    values = values_of(NcclGroup(address, rank, 2, CPU, LOG, backend="gloo", share_memory=share))
    return values | {"sums": [sums for memory in made for sums in memory.sums]}


def with_wrong_sums_on_rank_1(rank: int, address: str) -> dict[str, Any]:
    made: list[FakeMemory] = []

    def share(group: dist.ProcessGroup, device: torch.device) -> FakeMemory:
        made.append(FakeMemory(group, right=rank == 0))
        return made[0]

    values = values_of(NcclGroup(address, rank, 2, CPU, LOG, backend="gloo", share_memory=share))
    return values | {"sums": made[0].sums}


def with_torchs_memory_on_a_cpu(rank: int, address: str) -> dict[str, Any]:
    return values_of(NcclGroup(address, rank, 2, CPU, LOG, backend="gloo")) | {"sums": []}


def when_the_other_one_dies(rank: int, address: str) -> dict[str, Any]:
    group = NcclGroup(address, rank, 2, CPU, LOG, backend="gloo")
    if rank == 1:
        return {}
    try:
        group.wait_for_all(60)
    except RuntimeError as fault:
        return {"fault": type(fault).__name__}
    return {"fault": None}


BODIES = [
    with_memory, with_memory_on_rank_0_only, with_wrong_sums_on_rank_1, with_torchs_memory_on_a_cpu,
    when_the_other_one_dies,
]  # fmt: skip


def _run(pipe: Connection, rank: int, addresses: list[str]) -> None:
    torch.set_num_threads(1)
    for body, address in zip(BODIES, addresses, strict=True):
        pipe.send(body(rank, address))
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_ranks() -> dict[str, list[dict[str, Any]]]:
    """What every one of `BODIES` gives in two processes, by name and rank."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in BODIES]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    context, processes, pipes = multiprocessing.get_context("spawn"), [], []
    for rank in (0, 1):
        mine, theirs = context.Pipe()
        processes.append(context.Process(target=_run, args=(theirs, rank, addresses), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(mine)
    try:
        found: dict[str, list[dict[str, Any]]] = {}
        for body in BODIES:
            assert all(pipe.poll(60) for pipe in pipes), body.__name__
            found[body.__name__] = [pipe.recv() for pipe in pipes]
        return found
    finally:
        for process in processes:
            process.join(10)
            process.kill()


EXPECTED = {
    "small": [3.0], "large": [3.0], "whole numbers": [3] * 4, "first": [7],
    "integers": [[0, 5], [1, 5]], "texts": ["rank 0", "rank 1"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sums"),
    [
        ("with_memory", [("one-shot", 128)]),
        ("with_memory_on_rank_0_only", []),
        ("with_wrong_sums_on_rank_1", []),
        ("with_torchs_memory_on_a_cpu", []),
    ],
)
def test_every_collective_gives_every_rank_the_same_whether_memory_is_shared_or_not(
    on_two_ranks: dict[str, list[dict[str, Any]]], name: str, sums: list[tuple[Way, int]]
) -> None:
    first, second = (dict(values) for values in on_two_ranks[name])
    assert (first.pop("sums"), second.pop("sums")) == (sums, sums)
    row = [0.0, 0.0, 0.0, 1.0, 1.0]
    assert (first.pop("uneven"), first.pop("even")) == ([row, row], [[0.0, 0.0, 1.0, 1.0]] * 2)
    assert (second.pop("uneven"), second.pop("even")) == (None, None)
    assert first == second == EXPECTED


def test_a_rank_that_dies_ends_the_others_waiting_at_once(on_two_ranks: dict[str, list[dict[str, Any]]]) -> None:
    assert on_two_ranks["when_the_other_one_dies"] == [{"fault": "RuntimeError"}, {}]


@pytest.mark.parametrize("size", LIMITS)
def test_small_sums_go_the_short_way_and_large_ones_through_nccl(size: int) -> None:
    one_shot, two_shot = LIMITS[size]
    x = torch.empty(max(LIMITS[size]) + 16, dtype=torch.uint8)

    def way(nbytes: int) -> Way | None:
        return way_of(x[:nbytes].view(torch.bfloat16), size)

    assert (way(16), way(one_shot)) == ("one-shot", "one-shot")
    assert way(one_shot + 16) == ("two-shot" if two_shot > one_shot else None)
    assert way(max(one_shot, two_shot) + 16) is None


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(8, 8, dtype=torch.float16),
        torch.empty(8, 8, dtype=torch.int64),
        torch.empty(8, 8).t(),
        torch.empty(65)[1:],
        torch.empty(3, 1),
        torch.empty(0, 8),
    ],
    ids=["half", "integers", "columns", "not aligned", "no multiple of 16 bytes", "empty"],
)
def test_what_the_kernels_cannot_add_up_goes_through_nccl(x: Tensor) -> None:
    assert way_of(x, 2) is None


def test_numbers_of_ranks_that_the_kernels_are_not_made_for_go_through_nccl() -> None:
    assert way_of(torch.empty(64), 3) is None

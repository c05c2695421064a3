"""Ranks of a tensor-parallel engine as processes of their own, driven over pipes instead of a bus."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from shared import wire
from shared.messages.step import EngineFault, StepPlan, StepResult

ANSWER_TIMEOUT_S = 60.0
START_TIMEOUT_S = 240.0
"""A GPU's kernels may have to be compiled first."""
_START_METHOD = "spawn" if torch.cuda.is_available() else "forkserver"
"""A rank is forked from a process that has imported everything, which takes seconds; CUDA does not survive a fork."""
multiprocessing.set_forkserver_preload(["tests.unit.worker.driver"])


def _serve(pipe: Connection, path: str, rank: int, size: int, address: str, flags: dict[str, Any]) -> None:
    """Body of a rank process: build, then execute plans until the pipe closes."""
    from tests.unit.worker.driver import make_engine

    engine = make_engine(Path(path), tp_size=size, tp_rank=rank, dist_init_addr=address, **flags)
    pipe.send(engine.spec.num_pages)
    while True:
        try:
            plan = wire.decode(StepPlan, pipe.recv())
        except EOFError:
            return
        try:
            pipe.send(engine.execute(plan))
        except RuntimeError as fault:
            pipe.send(f"RuntimeError: {fault}")


class Ranks(AbstractContextManager["Ranks"]):
    """`size` ranks on a free port."""

    def __init__(self, path: Path, size: int, **flags: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        context = multiprocessing.get_context(_START_METHOD)
        self._pipes: list[Connection] = []
        self.processes = []
        for rank in range(size):
            mine, theirs = context.Pipe()
            arguments = (theirs, str(path), rank, size, address, flags)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self.processes.append(process)
        self.num_pages = [self.answer(rank, START_TIMEOUT_S) for rank in range(size)]

    def tell(self, rank: int, plan: StepPlan) -> None:
        self._pipes[rank].send(wire.encode(plan))

    def answer(self, rank: int, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        assert self._pipes[rank].poll(timeout_s), f"rank {rank} does not answer"
        return self._pipes[rank].recv()

    def execute(self, plan: StepPlan) -> StepResult | EngineFault:
        """One plan on all ranks; the others answer nothing."""
        for rank in range(len(self._pipes)):
            self.tell(rank, plan)
        first, *others = [self.answer(rank) for rank in range(len(self._pipes))]
        assert others == [None] * len(others), others
        return first

    def tokens(self, plans: Sequence[StepPlan]) -> list[list[int]]:
        return [self.execute(plan).tokens.tolist() for plan in plans]  # type: ignore[union-attr]

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            process.kill()

"""CUDA graphs of a program, one per size of its batch. Used by `decode_program.py` and `mixed_program.py`.

A graph replays the launches of one call: it reads and writes the memory that the call used, whatever is in it then.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Graphs:
    """Keeps graphs and their outputs' memory; lives as long as the program, used by the engine's device thread."""

    def __init__(self, forward: Callable[[int], Tensor]) -> None:
        """
        Args:
            forward: of a batch of the given size, without waiting for the device.
        """
        self._forward = forward
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def capture(self, sizes: list[int]) -> Iterator[tuple[int, int]]:
        """Capture one per size, the largest first, since they share memory; yields (how many are done, of how many)."""
        pool = torch.cuda.graph_pool_handle()
        for done, size in enumerate(sorted(sizes, reverse=True), 1):
            self._forward(size)  # compiles kernels, chooses matrix algorithms, connects ranks
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads (NCCL's watchdog, who waits for results) go on asking for events meanwhile.
            with _no_collection(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                out = self._forward(size)
            self._captured[size] = graph, out
            yield done, len(sizes)

    def run(self, size: int) -> Tensor:
        """What `forward(size)` gives, in memory that the next run of the size writes again."""
        if size not in self._captured:
            return self._forward(size)
        graph, out = self._captured[size]
        graph.replay()
        return out


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage may hold memory of the device, whose release would end a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

"""Ranks on the GPUs of one host: tensors over NVLink, integers and texts of the host over gloo.

Tensors are reduced, gathered and broadcast on the current stream; the host waits for none of it, and `all_reduce` may
be captured in a CUDA graph once it has run. A kernel that waits for a rank that is gone cannot be ended, only the
process can: gloo notices the loss in the next `Lockstep.meet`, and `service.py` exits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from services.worker.collectives import gather_columns
from services.worker.config import GROUP_TIMEOUT_S, START_TIMEOUT_S
from services.worker.gloo_group import GlooGroup
from services.worker.symmetric_memory import SymmetricMemory, Way, way_of
from shared.errors import ConfigError
from shared.log import Log

_WITHOUT_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""NVLink multicast needs a fabric that not every host has set up, and a failure of it takes the host's GPUs down."""


class SharedMemory(Protocol):
    """See `symmetric_memory.py`."""

    def all_reduce(self, x: Tensor, way: Way) -> Tensor: ...
    def adds_up(self) -> bool: ...


class NcclGroup:
    """One rank's connections, made once; used by the engine's device thread."""

    def __init__(
        self,
        address: str,
        rank: int,
        size: int,
        device: torch.device,
        log: Log,
        *,
        timeout_s: float = GROUP_TIMEOUT_S,
        backend: str = "nccl",
        share_memory: Callable[[dist.ProcessGroup, torch.device], SharedMemory] = SymmetricMemory,
    ) -> None:
        """Meet the other ranks at `address` (host:port), waiting up to `timeout_s`.

        Args:
            device: this rank's own, the current one of this thread.
            backend: of the tensors; anything but nccl is for tests.
            share_memory: sums small tensors faster than NCCL, or raises where it cannot.

        Raises:
            ConfigError: they did not come, or NCCL cannot connect them.
        """
        for name, value in _WITHOUT_MULTICAST.items():
            os.environ.setdefault(name, value)
        self.rank, self.size = rank, size
        self._host = GlooGroup(address, rank, size, timeout_s)
        try:
            # What NCCL's own watchdog may wait for includes kernels that another rank is still compiling.
            self.group = dist.new_group(backend=backend, timeout=timedelta(seconds=START_TIMEOUT_S))
            self._run_once(device)
        except (dist.DistError, RuntimeError) as fault:
            raise ConfigError(f"NCCL cannot connect the {size} ranks of --tp-size: {fault}") from fault
        self._memory = self._agree_on_memory(share_memory, device, log)

    def all_reduce(self, x: Tensor) -> Tensor:
        if self._memory is not None and (way := way_of(x, self.size)):
            return self._memory.all_reduce(x, way)
        dist.all_reduce(x, group=self.group)
        return x

    def gather_columns(self, x: Tensor, widths: list[int]) -> Tensor | None:
        return gather_columns(x, widths, self.rank, self.group)

    def from_first(self, x: Tensor) -> Tensor:
        dist.broadcast(x, 0, group=self.group)
        return x

    def all_integers(self, values: list[int]) -> list[list[int]]:
        return self._host.all_integers(values)

    def all_texts(self, text: str) -> list[str]:
        return self._host.all_texts(text)

    def wait_for_all(self, timeout_s: float) -> None:
        self._host.wait_for_all(timeout_s)

    def _run_once(self, device: torch.device) -> None:
        """Every collective sets up its connections when it first runs, which no graph may capture."""
        x = torch.ones((1, 8), device=device)
        dist.all_reduce(x, group=self.group)
        gather_columns(x, [8] * self.size, self.rank, self.group)
        self.from_first(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def _agree_on_memory(
        self, share_memory: Callable[[dist.ProcessGroup, torch.device], SharedMemory], device: torch.device, log: Log
    ) -> SharedMemory | None:
        """None on every rank when one of them cannot have it, or gets wrong sums."""
        memory, fault, right = None, "", False
        try:
            memory = share_memory(self.group, device)
        except (RuntimeError, ImportError, ValueError) as obstacle:
            fault = f"{type(obstacle).__name__}: {obstacle}"[:200]
        everybody = all(row[0] for row in self.all_integers([int(memory is not None)]))
        if everybody and memory is not None:
            try:
                right = memory.adds_up()
                fault = "" if right else "sums are wrong"
            except RuntimeError as obstacle:
                fault = f"{type(obstacle).__name__}: {obstacle}"[:200]
        if all(row[0] for row in self.all_integers([int(right)])):
            return memory
        log.warning("no symmetric memory, small sums go through NCCL", fault=fault or "another rank has none")
        return None

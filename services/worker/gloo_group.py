"""Ranks as processes on CPUs, and the host's side of ranks on GPUs (`nccl_group.py`)."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from services.worker.collectives import gather_columns
from services.worker.config import GROUP_TIMEOUT_S
from shared.errors import ConfigError

_TEXT_BYTES = 256


class GlooGroup:
    """A rank that ends breaks its connections, so the others fail at once instead of waiting."""

    def __init__(self, address: str, rank: int, size: int, timeout_s: float = GROUP_TIMEOUT_S) -> None:
        """Meet the other ranks at `address` (host:port), waiting up to `timeout_s`.

        Raises:
            ConfigError: they did not come.
        """
        if address.startswith(("127.", "localhost:")) and os.path.exists("/sys/class/net/lo"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        try:
            dist.init_process_group(
                "gloo", init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
            )
        except (dist.DistError, RuntimeError, ValueError) as fault:
            raise ConfigError(
                f"--dist-init-addr {address}: the {size} ranks did not meet within {timeout_s:g} s: {fault}"
            ) from fault
        self.rank, self.size = rank, size

    def all_reduce(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def gather_columns(self, x: Tensor, widths: list[int]) -> Tensor | None:
        return gather_columns(x, widths, self.rank, None)

    def from_first(self, x: Tensor) -> Tensor:
        dist.broadcast(x, 0)
        return x

    def all_integers(self, values: list[int]) -> list[list[int]]:
        mine = torch.tensor(values, dtype=torch.int64)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [p.tolist() for p in parts]

    def all_texts(self, text: str) -> list[str]:
        raw = text.encode()
        assert len(raw) < _TEXT_BYTES
        rows = self.all_integers([len(raw), *raw, *bytes(_TEXT_BYTES - len(raw))])
        return [bytes(row[1 : 1 + row[0]]).decode() for row in rows]

    def wait_for_all(self, timeout_s: float) -> None:
        dist.monitored_barrier(timeout=timedelta(seconds=timeout_s))

"""CPU time and memory of a set of named processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `pss` shares out pages that several processes map, so a sum of it is what the machine gives."""

    rss: int
    pss: int


class CpuMeter:
    """CPU seconds that processes used between `start` and `read`."""

    def __init__(self, processes: Mapping[str, psutil.Process]) -> None:
        self._processes = dict(processes)
        self.start()

    def start(self) -> None:
        self._before = {name: cpu_s(p) for name, p in self._processes.items()}
        self._since_s = time.monotonic()

    def read(self) -> dict[str, float]:
        """CPU seconds by name since `start`."""
        return {name: cpu_s(p) - self._before[name] for name, p in self._processes.items()}

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._since_s


def cpu_s(process: psutil.Process) -> float:
    """User and system seconds of all threads so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def memory(process: psutil.Process) -> Memory:
    """Resident and proportional set now."""
    full = process.memory_full_info()
    return Memory(full.rss, full.pss)

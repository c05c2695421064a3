"""How the benchmark measures: medians over replays of a CUDA graph that walks through cache-cold buffers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

COLD_BYTES = 200 << 20
"""Four times the L2 of an H100: buffer sets of a timed sequence together exceed this."""


@dataclass
class Report:
    """What one section found."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def check(self, name: str, out: torch.Tensor, reference: torch.Tensor, limit: float) -> None:
        """Relative error in the norm; NaN never passes."""
        want = reference.double()
        error = float((out.double() - want).norm() / want.norm().clamp_min(1e-30))
        self.checks.append({"name": name, "error": error, "limit": limit, "ok": error <= limit})

    def passed(self, name: str, ok: bool, detail: str = "") -> None:
        """A check that is no number."""
        self.checks.append({"name": name, "ok": ok, "detail": detail})

    def time(self, name: str, us: float, *, limit_us: float | None = None, **facts: Any) -> None:
        """A measured time next to the time that bytes or operations allow."""
        row: dict[str, Any] = {"name": name, "us": round(us, 2), **facts}
        if limit_us is not None:
            row["limit_us"] = round(limit_us, 2)
            row["share"] = round(limit_us / us, 3)
        self.timings.append(row)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def sets_needed(bytes_per_set: int, most: int = 64) -> int:
    """Buffer sets to rotate through so that a set is cold when its turn comes again."""
    return max(1, min(most, -(-COLD_BYTES // max(bytes_per_set, 1))))


def graph_us(launches: Sequence[Callable[[], Any]], *, calls: int = 20, replays: int = 7) -> float:
    """Microseconds of one launch: median over replays of a graph of at least `calls` launches, sets in turn."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for launch in launches:
            launch()
    torch.cuda.synchronize()
    rounds = max(1, -(-calls // len(launches)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(rounds):
            for launch in launches:
                launch()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (rounds * len(launches)))
    return statistics.median(times)


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of the card."""

    bytes_per_us: float
    flops_per_us: float

    def bytes_us(self, count: float) -> float:
        return count / self.bytes_per_us

    def flops_us(self, count: float) -> float:
        return count / self.flops_per_us


def measure_ceilings() -> Ceilings:
    """A large device-to-device copy (bytes read + written) and an 8192^3 bf16 product, on random data."""
    source = torch.randn(1 << 29, device="cuda").to(torch.bfloat16)
    target = torch.empty_like(source)
    copy_us = graph_us([lambda: target.copy_(source)], calls=5)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product_us = graph_us([lambda: torch.matmul(a, b, out=out)], calls=10)
    return Ceilings(2 * source.nbytes / copy_us, 2 * 8192**3 / product_us)

"""Decode and prefill steps of one engine, no bus: wall time, time the device was busy, and the card's limits."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_sections.limits import Limits, limits_of
from benchmarks.gpu_sections.session import Session
from benchmarks.kernel_sections.timing import Ceilings
from benchmarks.report import Report
from services.worker.build import build_engine
from services.worker.config import WorkerConfig
from services.worker.engine import Engine
from shared import log
from tests.gpu.shapes import SHAPES, write_shape

CONTEXT, PREFILL_TOKENS, SPARE = 1024, 8192, 48
STEPS = {"triton": 24, "flashinfer": 24, "torch": 3}
PROFILED = 2
KERNELS_SHOWN = 12
Row = dict[str, Any]


def measure(report: Report, ceilings: Ceilings, folder: Path, shape: str, backend: str, batches: list[int]) -> Row:
    """All figures of one model shape on one backend."""
    most = max(*batches, 8)
    slots = max(most * (CONTEXT + 2 * SPARE), 2 * PREFILL_TOKENS)
    engine = build(report, folder, shape, backend, PREFILL_TOKENS + 2 * SPARE, most, slots)
    limits = limits_of(SHAPES[shape])
    decode = [_decode(report, ceilings, limits, engine, shape, rows, STEPS[backend]) for rows in batches]
    prefill = [_prefill(report, ceilings, limits, engine, shape, *size) for size in ((1, 8192), (8, 1024))]
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    return {"shape": shape, "backend": backend, "decode": decode, "prefill": prefill}


def build(report: Report, folder: Path, shape: str, backend: str, context: int, rows: int, slots: int) -> Engine:
    """An engine with random weights."""
    started_s = time.perf_counter()
    engine = build_engine(
        WorkerConfig(
            model_path=str(write_shape(shape, folder / shape)), load_format="dummy", device="cuda", dtype="bfloat16",
            attention_backend=backend, context_length=context, max_running_requests=rows, max_total_tokens=slots,
        ),  # type: ignore[arg-type]
        "worker-0-bench",
        log.setup("bench"),
    )  # fmt: skip
    report.note(f"{shape} {backend}: engine built in {time.perf_counter() - started_s:.1f} s")
    return engine


def _decode(
    report: Report, ceilings: Ceilings, limits: Limits, engine: Engine, shape: str, rows: int, steps: int
) -> Row:
    session = Session(engine, rows, CONTEXT, SPARE)
    session.prefill(PREFILL_TOKENS)
    session.decode(2)
    times = np.diff(session.decode(steps + 1)).tolist()
    busy_ms, kernels = device_ms(session.decode)
    limit_ms = ceilings.bytes_us(limits.decode_bytes(rows, CONTEXT + steps // 2)) / 1e3
    name = f"{shape} {engine.spec.attention_backend} decode batch {rows}"
    row = step_row(name, statistics.median(times) * 1e3, busy_ms, limit_ms, kernels) | {"rows": rows}
    _say(report, row, "bytes")
    return row


def _prefill(
    report: Report, ceilings: Ceilings, limits: Limits, engine: Engine, shape: str, rows: int, tokens: int
) -> Row:
    def run() -> None:
        Session(engine, rows, tokens, 1).extend(np.arange(rows), 0, tokens)

    run()
    step_ms = min(_seconds(run) for _ in range(3)) * 1e3
    busy_ms, kernels = device_ms(run)
    limit_ms = ceilings.flops_us(limits.prefill_flops(rows, tokens)) / 1e3
    name = f"{shape} {engine.spec.attention_backend} prefill {rows} x {tokens}"
    row = step_row(name, step_ms, busy_ms, limit_ms, kernels) | {"rows": rows, "tokens": tokens}
    _say(report, row, "matrix rate")
    return row


def step_row(name: str, step_ms: float, busy_ms: float, limit_ms: float, kernels: dict[str, float]) -> Row:
    """A step's figures beside its limit."""
    return {
        "name": name, "step_ms": round(step_ms, 3), "device_ms": round(busy_ms, 3), "limit_ms": round(limit_ms, 3),
        "share": round(limit_ms / step_ms, 3), "device_share": round(limit_ms / busy_ms, 3) if busy_ms else None,
        "kernels_ms": kernels,
    }  # fmt: skip


def _say(report: Report, row: Row, limit: str) -> None:
    report.note(
        f"{row['name']}: {row['step_ms']:.2f} ms a step, device busy {row['device_ms']:.2f} ms, limit by {limit} "
        f"{row['limit_ms']:.2f} ms, share {row['share']:.1%}"
    )


def _seconds(run: Callable[[], None]) -> float:
    """A step ends with its tokens on the host: no more synchronization is needed."""
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def device_ms(run: Callable[[], None]) -> tuple[float, dict[str, float]]:
    """Milliseconds of a step in which kernels ran, and of the kernels that took most of them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED):
            run()
        torch.cuda.synchronize()
    times = {event.key: event.self_device_time_total / 1e3 / PROFILED for event in profile.key_averages()}
    top = sorted(times.items(), key=lambda item: -item[1])[:KERNELS_SHOWN]
    return sum(times.values()), {name[:80]: round(ms, 3) for name, ms in top}

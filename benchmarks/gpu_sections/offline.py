"""Throughput of the whole system: all requests handed to the scheduler at once, over NATS, token ids in and out."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.gpu_sections.system import service
from benchmarks.gpu_sections.token_client import Step, TokenClient
from benchmarks.gpu_sections.workloads import WORKLOADS, Work
from benchmarks.report import Report
from rhizome.nats_server import EmbeddedNats
from shared.bus import NatsBus
from tests.gpu.shapes import SHAPES, write_shape

CONTEXT, MEMORY_FRACTION = 8192, 0.9
WARM_UP_REQUESTS, WARM_UP_OUTPUT = 48, 12
Row = dict[str, Any]


def measure(report: Report, folder: Path, shape: str, names: list[str], depth: int, flags: list[str]) -> list[Row]:
    """One row per workload.

    Args:
        flags: more of them for the worker.
    """
    model = write_shape(shape, folder / shape)
    worker = [
        f"--model-path={model}", "--load-format=dummy", "--device=cuda", "--dtype=bfloat16",
        f"--context-length={CONTEXT}", f"--mem-fraction-static={MEMORY_FRACTION}",
        *flags,
    ]  # fmt: skip
    with ExitStack() as stack:
        nats = stack.enter_context(EmbeddedNats())
        started_s = time.perf_counter()
        stack.enter_context(service(folder, "worker", nats.url, worker))
        stack.enter_context(service(folder, "scheduler", nats.url, [f"--pipeline-depth={depth}"]))
        found = uvloop.run(_drive(nats.url, shape, names, report, started_s))
    return [{"shape": shape, "depth": depth, **row} for row in found]


async def _drive(url: str, shape: str, names: list[str], report: Report, started_s: float) -> list[Row]:
    bus = await NatsBus.connect(url, "bench")
    client = TokenClient(bus)
    await client.start()
    await client.wait_until_served()
    report.note(f"{shape}: serving after {time.perf_counter() - started_s:.1f} s")
    rows = []
    for name in names:
        make, vocab = WORKLOADS[name], SHAPES[shape]["vocab_size"]
        warm_up = make(np.random.default_rng(1), vocab)[:WARM_UP_REQUESTS]
        await client.generate([Work(work.prompt, min(work.output, WARM_UP_OUTPUT)) for work in warm_up])
        work = make(np.random.default_rng(0), vocab)
        begun_s = time.perf_counter()
        await client.generate(work)
        wall_s = time.perf_counter() - begun_s
        assert not client.errors, client.errors[:3]
        rows.append({"workload": name, **_figures(work, wall_s, client.steps)})
        report.note(f"{shape} {name}: {rows[-1]}")
    await client.stop()
    return rows


def _figures(work: list[Work], wall_s: float, steps: list[Step]) -> Row:
    tokens = sum(item.output for item in work)
    timings = [step.timing for step in steps]
    busy_ms = sum(t.prepare_ms + t.forward_ms + t.sample_ms for t in timings)
    idle_ms = sum(t.idle_ms for t in timings[1:])
    return {
        "output_tokens_per_s": round(tokens / wall_s),
        "requests": len(work),
        "prompt_tokens": sum(len(item.prompt) for item in work),
        "output_tokens": tokens,
        "wall_s": round(wall_s, 2),
        "steps": len(steps),
        "device_busy_s": round(busy_ms / 1e3, 2),
        "device_idle_share": round(idle_ms / max(busy_ms + idle_ms, 1e-9), 4),
        "launch_ms_p50": round(float(np.median([t.launch_ms for t in timings])), 3),
        "launch_ms_max": round(max(t.launch_ms for t in timings), 1),
        "queued_ms_mean": round(sum(t.queued_ms for t in timings) / max(1, len(timings)), 3),
    }

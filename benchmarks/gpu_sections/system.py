"""Scheduler and worker as processes over NATS: how much of a decode step the engine waits, by depth of the pipeline.

One worker serves all depths; each depth has a scheduler of its own. Steps in which every request got a token are
compared: the time from result to result against the time the worker says it was executing.
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.gpu_sections.token_client import Step, TokenClient
from benchmarks.gpu_sections.workloads import Work
from benchmarks.report import Report
from rhizome.nats_server import EmbeddedNats
from shared.bus import NatsBus
from tests.gpu.shapes import SHAPES, write_shape

PROMPT, TOKENS = 64, 160
STOP_TIMEOUT_S = 20.0
_ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


def measure(
    report: Report, folder: Path, shape: str, depths: list[int], batches: list[int], flags: list[str]
) -> list[Row]:
    """One row per depth and batch.

    Args:
        flags: more of them for the worker.
    """
    rows: list[Row] = []
    model = write_shape(shape, folder / shape)
    most = max(batches)
    worker = [
        f"--model-path={model}", "--load-format=dummy", "--device=cuda", "--dtype=bfloat16", "--context-length=2048",
        f"--max-running-requests={most}", f"--max-total-tokens={2 * most * (PROMPT + TOKENS + 16)}",
        *flags,
    ]  # fmt: skip
    with ExitStack() as stack:
        nats = stack.enter_context(EmbeddedNats())
        stack.enter_context(service(folder, "worker", nats.url, worker))
        for depth in depths:
            pipeline = [f"--pipeline-depth={depth}", "--chunked-prefill-size=8192"]
            with service(folder, "scheduler", nats.url, pipeline):
                found = uvloop.run(_drive(nats.url, shape, batches))
            for batch, steps in found.items():
                rows.append({"shape": shape, "depth": depth, "batch": batch, **_figures(steps, batch)})
                report.note(f"{shape} depth {depth} batch {batch}: {_shown(rows[-1])}")
    return rows


async def _drive(url: str, shape: str, batches: list[int]) -> dict[int, list[Step]]:
    bus = await NatsBus.connect(url, "bench")
    client = TokenClient(bus)
    await client.start()
    await client.wait_until_served()
    rng, found = np.random.default_rng(0), {}
    for batch in batches:
        for count in (8, TOKENS):  # the first compiles what is missing
            prompts = [rng.integers(0, SHAPES[shape]["vocab_size"], PROMPT).astype(np.int32) for _ in range(batch)]
            await client.generate([Work(prompt, count) for prompt in prompts])
        found[batch] = list(client.steps)
    assert not client.errors, client.errors[:3]
    await client.stop()
    return found


def _figures(steps: list[Step], batch: int) -> Row:
    full = [step for step in steps if step.tokens == batch][2:]
    if len(full) < 10:
        return {"steps": len(full)}
    gaps = [(b.came_s - a.came_s) * 1e3 for a, b in itertools.pairwise(full)]
    timings = [step.timing for step in full[1:]]
    busy = [timing.prepare_ms + timing.forward_ms + timing.sample_ms for timing in timings]
    idle = [timing.idle_ms for timing in timings]
    return {
        "steps": len(full),
        "step_ms": round(statistics.mean(gaps), 3),
        "step_p50_ms": round(statistics.median(gaps), 3),
        "device_ms": round(statistics.mean(busy), 3),
        "launch_ms": round(statistics.mean(timing.launch_ms for timing in timings), 3),
        "idle_share": round(sum(idle) / (sum(busy) + sum(idle)), 4),
        "queued_ms": round(statistics.mean(timing.queued_ms for timing in timings), 3),
        "tokens_per_s": round(batch * 1e3 / statistics.mean(gaps)),
    }


def _shown(row: Row) -> str:
    if "step_ms" not in row:
        return f"only {row['steps']} full steps"
    return (
        f"{row['step_ms']:.3f} ms a step (p50 {row['step_p50_ms']:.3f}), device {row['device_ms']:.3f} ms, "
        f"launch {row['launch_ms']:.3f} ms, idle {row['idle_share']:.1%}, {row['tokens_per_s']:,} tokens/s"
    )


@contextmanager
def service(folder: Path, name: str, url: str, flags: list[str]) -> Iterator[None]:
    """A service process; its log is shown when what needs it fails."""
    path = folder / f"{name}.log"
    with path.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", f"services.{name}", f"--nats-url={url}", *flags],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=_ROOT, env=dict(os.environ),
        )  # fmt: skip
    try:
        yield
    except BaseException:
        print(f"--- {name}\n{path.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        raise
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

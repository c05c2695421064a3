"""Ranks of one engine as real worker processes on a bus, and plans for them, without scheduler and supervisor."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shared import messages as m
from shared import wire
from shared.bus import NatsBus
from shared.subjects import Subjects

DEPLOYMENT, SESSION = "ranks", "test.1"
START_TIMEOUT_S = 180.0
_ROOT = Path(__file__).parents[2]


@contextmanager
def rank_processes(model: Path, nats_url: str, size: int, *flags: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`size` workers that meet on a free port; killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    argv = [
        sys.executable, "-m", "services.worker", f"--model-path={model}", f"--nats-url={nats_url}",
        f"--deployment={DEPLOYMENT}", f"--tp-size={size}", f"--dist-init-addr={address}", "--num-threads=1",
        "--max-total-tokens=2048", "--max-running-requests=8", "--log-level=warning", *flags,
    ]  # fmt: skip
    started = [
        subprocess.Popen([*argv, f"--tp-rank={rank}", f"--name=worker-{rank}"], cwd=_ROOT, env=dict(os.environ))
        for rank in range(size)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


async def lose_rank_1(processes: list[subprocess.Popen[bytes]], bus: NatsBus, plans: int) -> tuple[int, float]:
    """Kill rank 1 while rank 0 has `plans` decode steps to do; rank 0's exit status and the seconds it took.

    Nobody says goodbye for the killed rank: what is left are broken connections, silence and time.
    """
    subjects = Subjects(DEPLOYMENT)
    infos: asyncio.Queue[m.EngineInfo] = asyncio.Queue()
    results: asyncio.Queue[m.StepResult] = asyncio.Queue()

    async def on_info(data: bytes, _: str) -> None:
        infos.put_nowait(wire.decode(m.EngineInfo, data))

    async def on_result(data: bytes, _: str) -> None:
        results.put_nowait(wire.decode(m.StepResult, data))

    await bus.subscribe(subjects.scheduler_engines("scheduler-0"), on_info)
    await bus.subscribe(subjects.scheduler_result(SESSION), on_result)
    await bus.flush()
    engine = (await asyncio.wait_for(infos.get(), START_TIMEOUT_S)).engine_id
    subject = subjects.engine_plan(engine)
    await bus.publish(subject, wire.encode(_prompt(engine, pages=-(-(plans + 16) // 16))))
    assert (await asyncio.wait_for(results.get(), 60)).seq == 0
    for seq in range(1, plans):
        await bus.publish(subject, wire.encode(m.StepPlan(engine, SESSION, seq, decode_rows=_i32(0))))
    await bus.flush()
    assert (await asyncio.wait_for(results.get(), 60)).seq == 1
    processes[1].kill()
    killed_s = time.monotonic()
    status = await asyncio.to_thread(processes[0].wait, 120)
    return status, time.monotonic() - killed_s


def _prompt(engine: str, pages: int) -> m.StepPlan:
    return m.StepPlan(
        engine, SESSION, 0, new_rows=[m.RowInit(0, temperature=0.0)], page_rows=_i32(0), page_starts=_i32(1),
        page_lens=_i32(pages), ext_rows=_i32(0), ext_starts=_i32(0), ext_lens=_i32(4), ext_tokens=_i32(5, 6, 7, 8),
        ext_sample=np.ones(1, np.uint8), decode_rows=_i32(),
    )  # fmt: skip


def _i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)

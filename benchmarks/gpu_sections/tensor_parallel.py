"""One card against several: decode and prefill steps of an engine of each, and what a sum over the ranks costs.

Every rank is a process. Ranks run the same plans, made by each for itself, so no bus is needed; rank 0 takes the times.
"""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.gpu_sections.limits import limits_of
from benchmarks.gpu_sections.session import Session
from benchmarks.gpu_sections.steps import CONTEXT, PREFILL_TOKENS, SPARE
from benchmarks.kernel_sections.timing import graph_us
from benchmarks.report import Report
from services.worker.build import build_engine
from services.worker.config import WorkerConfig
from services.worker.engine import Engine
from services.worker.nccl_group import NcclGroup
from services.worker.symmetric_memory import SymmetricMemory, way_of
from shared import log
from tests.gpu.shapes import SHAPES, write_shape

STEPS, PREFILLS = 32, 4
SUM_BYTES = [*(1 << n for n in range(13, 23)), 16 << 20, 64 << 20]
SHARED_BYTES = 16 << 20
"""Largest sum through symmetric memory."""
RANK_TIMEOUT_S = 150.0
Row = dict[str, Any]


def measure(report: Report, folder: Path, shape: str, sizes: list[int], batches: list[int]) -> Row:
    """Figures by number of ranks, and those of the sums with most of them."""
    model = write_shape(shape, folder / shape)
    steps: list[Row] = []
    sums: list[Row] = []
    for size in sizes:
        started_s = time.perf_counter()
        found = _on_ranks(model, shape, size, batches)
        steps += found["steps"]
        sums = found["sums"] or sums
        took_s = time.perf_counter() - started_s
        report.note(f"{shape} on {size}: built in {found['build_s']:.1f} s, all in {took_s:.1f} s")
    _show(report, shape, sizes, steps, sums)
    return {"shape": shape, "steps": steps, "sums": sums}


def _show(report: Report, shape: str, sizes: list[int], steps: list[Row], sums: list[Row]) -> None:
    names = list(dict.fromkeys(row["step"] for row in steps))
    by_name = {(row["step"], row["tp_size"]): row for row in steps}
    first = sizes[0]
    report.table(
        f"{shape}: ms a step (weights and KV read, GB/s of each card)",
        ["step", *(f"tp {size}" for size in sizes), *(f"GB/s {size}" for size in sizes), "faster"],
        [[name, *(by_name[name, size]["step_ms"] for size in sizes), *(by_name[name, size]["gb_s"] for size in sizes),
          by_name[name, first]["step_ms"] / by_name[name, sizes[-1]]["step_ms"]] for name in names],
    )  # fmt: skip
    if sums:
        report.table(
            f"sum over {sizes[-1]} ranks, microseconds (bus bandwidth in GB/s)",
            ["bytes", "NCCL", "GB/s", "one-shot", "GB/s", "two-shot", "GB/s", "engine takes"],
            [[row["bytes"], *(row[key] for way in ("nccl", "one_shot", "two_shot")
                              for key in (f"{way}_us", f"{way}_bus_gb_s")), row["taken"]] for row in sums],
        )  # fmt: skip


def _on_ranks(model: Path, shape: str, size: int, batches: list[int]) -> Row:
    """What rank 0 of `size` finds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}" if size > 1 else ""
    context, processes, pipes = multiprocessing.get_context("spawn"), [], []
    for rank in range(size):
        mine, theirs = context.Pipe()
        arguments = (theirs, model, shape, rank, size, address, batches)
        processes.append(context.Process(target=_rank, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(mine)
    try:
        assert pipes[0].poll(RANK_TIMEOUT_S), f"{size} ranks took over {RANK_TIMEOUT_S:g} s"
        found: Row = pipes[0].recv()  # EOFError when rank 0 failed: it has said why
        return found
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(pipe: Connection, model: Path, shape: str, rank: int, size: int, address: str, batches: list[int]) -> None:
    """Body of a rank's process."""
    started_s = time.perf_counter()
    most = max(batches)
    engine = build_engine(
        WorkerConfig(
            model_path=str(model), load_format="dummy", device="cuda", dtype="bfloat16",
            context_length=PREFILL_TOKENS + 2 * SPARE, max_running_requests=most,
            max_total_tokens=max(most * (CONTEXT + 2 * SPARE), 2 * PREFILL_TOKENS),
            tp_size=size, tp_rank=rank, dist_init_addr=address,
        ),
        f"worker-0-rank{rank}",
        log.setup(f"rank {rank}", "warning"),
    )  # fmt: skip
    build_s = time.perf_counter() - started_s
    limits = limits_of(SHAPES[shape])
    steps = []
    for rows in batches:
        step_ms = _decode_ms(engine, rows)
        read = limits.decode_bytes(rows, CONTEXT + STEPS // 2) / size
        name = f"decode {rows} x {CONTEXT}"
        steps.append({"tp_size": size, "step": name, "step_ms": round(step_ms, 3), "gb_s": round(read / step_ms / 1e6)})
    step_ms = _prefill_ms(engine)
    name = f"prefill 1 x {PREFILL_TOKENS}"
    steps.append({"tp_size": size, "step": name, "step_ms": round(step_ms, 3), "gb_s": None})
    sums = _sums(engine.comm) if isinstance(engine.comm, NcclGroup) else []
    pipe.send({"build_s": build_s, "steps": steps, "sums": sums})
    engine.meet()


def _decode_ms(engine: Engine, rows: int) -> float:
    session = Session(engine, rows, CONTEXT, SPARE)
    session.prefill(PREFILL_TOKENS)
    session.decode(2)
    return statistics.median(np.diff(session.decode(STEPS + 1)).tolist()) * 1e3


def _prefill_ms(engine: Engine) -> float:
    times = []
    for _ in range(PREFILLS):
        session = Session(engine, 1, PREFILL_TOKENS, 1)
        started_s = time.perf_counter()
        session.extend(np.arange(1), 0, PREFILL_TOKENS)
        times.append((time.perf_counter() - started_s) * 1e3)
    return min(times[1:])


def _sums(comm: NcclGroup) -> list[Row]:
    """Every rank at once."""
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        memory: SymmetricMemory | None = SymmetricMemory(comm.group, device, SHARED_BYTES)
    except (RuntimeError, ImportError) as fault:
        print(f"no symmetric memory: {fault}", flush=True)
        memory = None
    rows: list[Row] = []
    for nbytes in SUM_BYTES:
        x = torch.zeros(nbytes // 2, dtype=torch.bfloat16, device=device)
        row: Row = {"bytes": nbytes, "taken": way_of(x, comm.size) or "NCCL"}
        ways: dict[str, Any] = {"nccl": lambda x=x: dist.all_reduce(x, group=comm.group)}
        if memory is not None and nbytes <= SHARED_BYTES:
            ways |= {"one_shot": lambda x=x: memory.one_shot(x), "two_shot": lambda x=x: memory.two_shot(x)}
        for name in ("nccl", "one_shot", "two_shot"):
            us = graph_us([ways[name]], calls=50) if name in ways else None
            bus = None if us is None else round(2 * (comm.size - 1) / comm.size * nbytes / us / 1e3, 1)
            row |= {f"{name}_us": None if us is None else round(us, 2), f"{name}_bus_gb_s": bus}
        rows.append(row)
    return rows

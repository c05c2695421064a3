"""The default model in the 4 bits of its file against the same weights in float32, on this machine's processor."""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_sections.session import Session
from benchmarks.report import Report
from rhizome.models import DEFAULT_MODEL
from rhizome.models.resolve import resolve_model
from services.worker.build import build_engine
from services.worker.config import WorkerConfig
from services.worker.engine import Engine
from shared.log import Log
from tests.plain_model import plain_model

ROWS = (1, 2, 4, 8, 16)
CONTEXT, SPARE, PROMPT = 128, 160, 512
STEPS, ROUNDS = 5, 8


def measure(report: Report, folder: Path, threads: int) -> list[dict[str, Any]]:
    """Both engines are in this process and take turns."""
    small = resolve_model(DEFAULT_MODEL, report.note)
    engines = {
        "float32": _engine(plain_model(small, folder / "plain"), threads),
        "4 bits": _engine(small, threads),
    }
    rows = [_row(report, f"decode {count}", _decode(engines, count)) for count in ROWS]
    rows.append(_row(report, f"prompt {PROMPT}", _prompt(engines)))
    report.table("ms a step", list(rows[0]), [list(row.values()) for row in rows])
    return rows


def _engine(folder: Path, threads: int) -> Engine:
    config = WorkerConfig(
        model_path=str(folder), device="cpu", num_threads=threads, max_running_requests=max(ROWS),
        max_total_tokens=max(ROWS) * (CONTEXT + SPARE) + PROMPT,
    )  # fmt: skip
    return build_engine(config, "worker-0-bench", Log(logging.Logger("bench"), {}))


def _decode(engines: dict[str, Engine], count: int) -> dict[str, list[float]]:
    sessions = {kind: Session(engine, count, CONTEXT, SPARE) for kind, engine in engines.items()}
    for session in sessions.values():
        session.prefill(PROMPT)
        session.decode(2)
    times: dict[str, list[float]] = {kind: [] for kind in engines}
    for _ in range(ROUNDS):
        for kind, session in sessions.items():
            times[kind] += (np.diff(session.decode(STEPS + 1)) * 1e3).tolist()
    return times


def _prompt(engines: dict[str, Engine]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {kind: [] for kind in engines}
    for turn in range(4):
        for kind, engine in engines.items():
            started_s = time.perf_counter()
            Session(engine, 1, PROMPT, 1).prefill(PROMPT)
            if turn:  # the first finds nothing in the caches
                times[kind].append((time.perf_counter() - started_s) * 1e3)
    return times


def _row(report: Report, step: str, times: dict[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step} | {kind: round(statistics.median(ms), 2) for kind, ms in times.items()}
    row["times faster"] = round(row["float32"] / row["4 bits"], 2)
    report.note(f"{row}")
    return row

"""Steps of many rows that share prefixes in groups: decode, and decode rows beside rows that begin."""

from __future__ import annotations

import gc
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_sections.limits import limits_of
from benchmarks.gpu_sections.session import Session
from benchmarks.gpu_sections.steps import build, device_ms, step_row
from benchmarks.kernel_sections.timing import Ceilings
from benchmarks.report import Report
from services.worker.engine import Engine
from tests.gpu.shapes import SHAPES

ROWS, EACH, SHARED, OWN = 1024, 16, 1024, 64
DECODING = 512
STEPS, SPARE, PREFILL_TOKENS = 12, 64, 8192
Row = dict[str, Any]


def measure(report: Report, ceilings: Ceilings, folder: Path, shape: str, backend: str) -> list[Row]:
    """A decode step of all rows, and a step in which half of them decode and others compute their own tokens."""
    slots = ROWS // EACH * SHARED + ROWS * (OWN + SPARE) + 2 * PREFILL_TOKENS
    engine = build(report, folder, shape, backend, SHARED + OWN + SPARE, ROWS, slots)
    rows = _measure(ceilings, engine, shape)
    for row in rows:
        report.note(f"{row['name']}: {row['step_ms']:.2f} ms, limit {row['limit_ms']:.2f} ms, {row['kernels_ms']}")
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def _measure(ceilings: Ceilings, engine: Engine, shape: str) -> list[Row]:
    context, limits = SHARED + OWN, limits_of(SHAPES[shape])
    session = Session(engine, ROWS, context, SPARE, shared=SHARED, each=EACH)
    session.prefill(PREFILL_TOKENS)
    session.decode(2)
    times = np.diff(session.decode(STEPS + 1)).tolist()
    busy_ms, kernels = device_ms(session.decode)
    tokens = ROWS // EACH * SHARED + ROWS * (OWN + STEPS // 2)
    bytes_ms = ceilings.bytes_us(limits.decode_bytes(1, 0) + tokens * limits.kv_bytes) / 1e3
    flops_ms = ceilings.flops_us(2.0 * ROWS * (limits.layer_weights + limits.head_weights)) / 1e3
    name = f"{shape} {engine.spec.attention_backend} {ROWS} rows in groups of {EACH}, {SHARED} tokens shared"
    rows = [step_row(name, statistics.median(times) * 1e3, busy_ms, max(bytes_ms, flops_ms), kernels)]

    beginning = np.arange(DECODING, DECODING + (PREFILL_TOKENS - DECODING) // OWN)

    def mixed() -> None:
        session.extend(beginning, SHARED, OWN, decode=np.arange(DECODING))

    mixed()
    busy_ms, kernels = device_ms(mixed)
    flops_ms = ceilings.flops_us(2.0 * (DECODING + len(beginning) * OWN) * limits.layer_weights) / 1e3
    rows.append(
        step_row(f"{name}, {DECODING} decode beside {len(beginning)} x {OWN}", busy_ms, busy_ms, flops_ms, kernels)
    )
    return rows

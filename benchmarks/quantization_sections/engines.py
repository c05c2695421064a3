"""Decode and prefill steps of one engine with Llama-3.1-8B's shape and random weights: bf16, FP8 and INT4, and keys and
values of 16 or 8 bits."""

from __future__ import annotations

import gc
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_sections.limits import limits_of
from benchmarks.gpu_sections.session import Session
from benchmarks.gpu_sections.steps import device_ms
from benchmarks.kernel_sections.timing import Ceilings
from benchmarks.report import Report
from services.worker.build import build_engine
from services.worker.config import WorkerConfig
from services.worker.engine import Engine
from shared.log import Log
from tests.gpu.shapes import LLAMA_8B, write_shape

CONTEXT, PROMPT, SPARE, STEPS = 1024, 4096, 48, 24
FP8_CACHE = {"kv_cache_dtype": "fp8_e4m3"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bf16": ("8B", {}), "fp8": ("8B", {"quantization": "fp8"}), "fp8+kv": ("8B", {"quantization": "fp8", **FP8_CACHE}),
    "int4": ("8B-AWQ", {}), "int4+kv": ("8B-AWQ", FP8_CACHE),
}  # fmt: skip
"""Shape and flags."""
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "int4": 0.5 + 4 / 128}
"""Of a weight in a layer, by the first part of a kind's name; the head is plain."""
Row = dict[str, Any]


def measure(report: Report, ceilings: Ceilings, folder: Path, batches: list[int]) -> dict[str, Any]:
    kinds = {kind: _engine(report, ceilings, folder, kind, batches) for kind in KINDS}
    gains = [
        {"step": row["step"]} | {kind: round(row["ms"] / kinds[kind]["steps"][at]["ms"], 2) for kind in list(KINDS)[1:]}
        for at, row in enumerate(kinds["bf16"]["steps"])
    ]
    report.table("times faster than bf16", ["step", *list(KINDS)[1:]], [list(gain.values()) for gain in gains])
    return {"kinds": kinds, "gains": gains}


def _engine(report: Report, ceilings: Ceilings, folder: Path, kind: str, batches: list[int]) -> dict[str, Any]:
    shape, flags = KINDS[kind]
    rows = max(batches)
    sizes = _Sizes()
    started_s = time.perf_counter()
    engine = build_engine(
        WorkerConfig(
            model_path=str(write_shape(shape, folder / shape)), load_format="dummy", device="cuda", dtype="bfloat16",
            attention_backend="triton", context_length=PROMPT + 2 * SPARE, max_running_requests=rows,
            max_total_tokens=rows * (CONTEXT + 2 * SPARE) + PROMPT, **flags,
        ),
        "worker-0-bench",
        Log(sizes.logger, {}),
    )  # fmt: skip
    report.note(f"{kind}: engine built in {time.perf_counter() - started_s:.1f} s, {sizes.line}")
    limits = limits_of(LLAMA_8B)
    weights, *small_cache = kind.split("+")
    saved = limits.layer_weights * (2.0 - WEIGHT_BYTES[weights])
    steps = []
    for batch in batches:
        context = CONTEXT + STEPS // 2
        saved_cache = batch * context * limits.kv_bytes / 2 if small_cache else 0
        limit_ms = ceilings.bytes_us(limits.decode_bytes(batch, context) - saved - saved_cache) / 1e3
        steps.append(_decode(report, engine, kind, batch, limit_ms))
    matrix = 2.0 if weights == "fp8" else 1.0
    steps.append(_prefill(report, engine, kind, ceilings.flops_us(limits.prefill_flops(1, PROMPT)) / 1e3 / matrix))
    allocated = torch.cuda.memory_allocated()
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    return {"steps": steps, "weights": sizes.line, "allocated_bytes": allocated}


def _decode(report: Report, engine: Engine, kind: str, rows: int, limit_ms: float) -> Row:
    session = Session(engine, rows, CONTEXT, SPARE)
    session.prefill(PROMPT)
    session.decode(2)
    ms = statistics.median(np.diff(session.decode(STEPS + 1)).tolist()) * 1e3
    busy_ms, kernels = device_ms(session.decode)
    return _said(report, kind, f"decode {rows}", ms, busy_ms, limit_ms, rows / ms * 1e3, kernels)


def _prefill(report: Report, engine: Engine, kind: str, limit_ms: float) -> Row:
    def run() -> None:
        Session(engine, 1, PROMPT, 1).extend(np.arange(1), 0, PROMPT)

    run()
    times = []
    for _ in range(4):
        started_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - started_s)
    busy_ms, kernels = device_ms(run)
    return _said(report, kind, f"prefill {PROMPT}", min(times) * 1e3, busy_ms, limit_ms, PROMPT / min(times), kernels)


def _said(
    report: Report, kind: str, step: str, ms: float, busy_ms: float, limit_ms: float, rate: float,
    kernels: dict[str, float],
) -> Row:  # fmt: skip
    report.note(f"{kind:7} {step:13} {ms:8.2f} ms, busy {busy_ms:8.2f}, limit {limit_ms:7.2f} ({limit_ms / ms:.1%}), "
                f"{rate:,.0f} tokens/s")  # fmt: skip
    return {
        "step": step, "ms": round(ms, 3), "device_ms": round(busy_ms, 3), "limit_ms": round(limit_ms, 3),
        "share": round(limit_ms / ms, 3), "tokens_per_s": round(rate, 1), "kernels_ms": kernels,
    }  # fmt: skip


class _Sizes(logging.Handler):
    """Keeps what the engine says of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.line: dict[str, Any] = {}
        self.logger = logging.Logger("bench", logging.INFO)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "quantized weights":
            self.line = dict(getattr(record, "fields", {}))

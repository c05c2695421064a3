"""What a step's masks cost the scheduler and the bus: real grammars and a real vocabulary, no model, no bus.

An engine that only draws among what it may draw stands for the worker; the scheduler's own time is measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.structured_sections.tasks import EXTRACTION, TASKS
from services.scheduler.config import SchedulerConfig
from services.scheduler.grammar import Compiler, Grammar, load_vocabulary
from services.worker.sampling.masks import MaskUpdate
from shared import messages as m
from shared import wire
from shared.grammar import GrammarSpec
from tests.fakes.engine import engine_info
from tests.fakes.scheduler_driver import Driver

STEPS = 120
Row = dict[str, Any]


class DrawingEngine:
    """Answers plans with tokens drawn among the allowed ones; closing ones are as likely as the mask makes them."""

    def __init__(self, info: m.EngineInfo, seed: int = 0) -> None:
        self.info, self._rng = info, np.random.default_rng(seed)
        self._decode = np.empty(0, np.int32)
        self._bank: dict[int, np.ndarray] = {}

    def execute(self, plan: m.StepPlan, masks: Any = ()) -> m.StepResult:
        if plan.decode_rows is not None:
            self._decode = plan.decode_rows
        extends = np.empty(0, np.int32)
        if plan.ext_rows is not None and plan.ext_sample is not None:
            extends = plan.ext_rows[plan.ext_sample != 0]
        allowed: dict[int, np.ndarray] = {}
        if masks:
            update = MaskUpdate(masks, self.info.max_rows, self.info.mask_slots, self.info.vocab_size)
            for slot, bits in zip(update.new_slots.tolist(), update.allowed(), strict=True):
                self._bank[slot] = np.flatnonzero(bits)
            allowed = {
                row: self._bank[s] for row, s in zip(update.rows.tolist(), update.slots.tolist(), strict=True) if s >= 0
            }
        rows = np.concatenate((extends, self._decode))
        tokens = [int(self._rng.choice(allowed[row])) if row in allowed else 5 for row in rows.tolist()]
        return m.StepResult(self.info.engine_id, plan.session, plan.seq, np.array(tokens, np.int32))


def measure(folder: Path, batches: list[int]) -> list[Row]:
    """A row per grammar, batch and use of jumps."""
    vocabulary = load_vocabulary(folder)
    specs = {
        "schema": GrammarSpec("json_schema", json.dumps(EXTRACTION)),
        "regex": GrammarSpec("regex", TASKS["character (regex)"].constraint["regex"]),
    }
    grammars = asyncio.run(_compile(vocabulary, specs))
    return [
        {"vocabulary": vocabulary.size, "grammar": name, "rows": rows, "jump": jump,
         **_run(grammar, vocabulary.size, rows, jump)}
        for name, grammar in grammars.items() for rows in batches for jump in (True, False)
    ]  # fmt: skip


async def _compile(vocabulary: Any, specs: dict[str, GrammarSpec]) -> dict[str, Grammar]:
    compiler = Compiler(vocabulary)
    try:
        return {name: await compiler.compile(spec) for name, spec in specs.items()}
    finally:
        await compiler.close()


def _run(grammar: Grammar, vocab_size: int, rows: int, jump: bool) -> Row:
    info = engine_info(
        num_pages=rows * 600 + 64,
        max_rows=rows,
        context_length=600,
        vocab_size=vocab_size,
        mask_slots=max(512, 2 * rows),
    )
    driver = Driver(info, SchedulerConfig(disable_jump_forward=not jump, chunked_prefill_size=8192))
    driver.engines[info.engine_id] = DrawingEngine(info)  # type: ignore[assignment]
    scheduler, spent_s, bytes_, row_steps, steps = driver.scheduler, 0.0, 0, 0, 0

    def refill() -> None:
        while driver.scheduler.running_reqs + driver.scheduler.queue_reqs < rows:
            driver.submit([5, 6, 7, 8], 500, grammar=grammar)

    refill()
    bank = driver.session.mask_bank
    for step in range(STEPS):
        plans = [plan for _, plan in scheduler.plans()]
        started_s = time.perf_counter()
        masks = [msg for _, msg in scheduler.masks()]
        spent_s += time.perf_counter() - started_s
        for plan in plans:
            driver.plans.append(plan)
        for message in masks:
            driver.masks.setdefault((message.session, message.seq), []).append(message)
            if step >= STEPS // 3:  # by then what recurs has travelled
                bytes_ += len(wire.encode(message))
                row_steps += len(message.rows)
                steps += 1
        result = driver.execute()
        before_s = scheduler.stages.seconds["apply"]
        scheduler.apply(result)
        spent_s += scheduler.stages.seconds["apply"] - before_s
        driver.collect()
        refill()
    return {
        "us_per_row": round(1e6 * spent_s / max(1, bank.looked_up), 1),
        "bytes_per_row_step": round(bytes_ / max(1, row_steps), 1),
        "without_interning": vocab_size // 8,
        "hit_rate": round(1 - bank.travelled / max(1, bank.looked_up), 4),
        "forced_share": round(scheduler.totals.forced_tokens / max(1, scheduler.totals.generation_tokens), 3),
    }

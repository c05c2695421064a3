"""A scheduler with a worker's engine in one process, without a bus."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from services.scheduler.config import SchedulerConfig
from services.worker.build import build_engine
from services.worker.config import WorkerConfig
from services.worker.engine import Engine
from shared import messages as m
from shared.log import Log
from tests.fakes.engine import engine_info
from tests.fakes.scheduler_driver import Driver


def real_driver(
    folder: Path, *, page_size: int, chunk: int, depth: int, pool_tokens: int, backend: str = "auto",
    disable_jump_forward: bool = False, device: str = "cpu",
) -> Driver:  # fmt: skip
    """A driver whose one engine computes."""
    worker = build_engine(
        WorkerConfig(model_path=str(folder), page_size=page_size, max_total_tokens=pool_tokens, num_threads=1,
                     max_running_requests=32, device=device, attention_backend=backend, dtype="float32"),
        "engine-0-test",
        Log(logging.getLogger("rhizome"), {}),
    )  # fmt: skip
    spec = worker.spec
    info = engine_info(
        engine_id=spec.engine_id, num_pages=spec.num_pages, page_size=spec.page_size, max_rows=spec.max_rows,
        context_length=spec.context_length, vocab_size=spec.vocab_size, mask_slots=spec.mask_slots,
    )  # fmt: skip
    config = SchedulerConfig(
        chunked_prefill_size=chunk, pipeline_depth=depth, disable_jump_forward=disable_jump_forward
    )
    driver = Driver(info, config)
    driver.engines[spec.engine_id] = _Checked(worker)  # type: ignore[assignment]
    return driver


class _Checked:
    """A worker engine whose faults fail the test at once."""

    def __init__(self, worker: Engine) -> None:
        self._worker = worker

    def execute(self, plan: m.StepPlan, masks: Sequence[m.StepMasks] = ()) -> m.StepResult:
        if plan.seq == 0:
            self._worker.masks.begin(plan.session)
        for message in masks:
            self._worker.masks.put(message)
        result = self._worker.execute(plan)
        assert isinstance(result, m.StepResult), result
        return result

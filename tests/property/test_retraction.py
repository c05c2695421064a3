"""Pools too small for the traffic: requests are sent back and resumed again and again, and nobody notices."""

from __future__ import annotations

import random

import pytest

from services.scheduler.config import SchedulerConfig
from tests.fakes.engine import engine_info, expected_tokens
from tests.fakes.scheduler_driver import Driver


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("chunk", [-1, 16])
def test_outputs_are_exact_while_a_tiny_pool_forces_retractions(page_size: int, depth: int, chunk: int) -> None:
    rng = random.Random(page_size * 10 + depth)
    info = engine_info(
        num_pages=160 // page_size, page_size=page_size, max_rows=16, context_length=128, vocab_size=50
    )  # fmt: skip
    driver = Driver(
        info, SchedulerConfig(pipeline_depth=depth, chunked_prefill_size=chunk, schedule_conservativeness=0.02)
    )
    wanted: dict[int, list[int]] = {}
    for _ in range(40):
        prompt = [5] * rng.randint(0, 30) + [rng.randint(3, 40) for _ in range(rng.randint(1, 10))]
        count = rng.randint(20, 60)
        wanted[driver.submit(prompt, count, ignore_eos=True)] = expected_tokens(prompt, count, 50)
    while driver.pump() or driver.plans:
        for _ in range(rng.randint(1, depth)):
            driver.answer()
        driver.check()
    assert driver.scheduler.totals.retractions >= 1
    for handle, tokens in wanted.items():
        assert driver.outputs[handle].tokens == tokens
    assert driver.scheduler.running_reqs == 0

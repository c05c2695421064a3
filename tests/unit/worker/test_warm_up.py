"""What an engine runs before it is announced: everything a first request may need, and nothing is left of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.worker.engine_spec import EngineSpec
from services.worker.warm_up import warm_up_plans
from shared.messages.step import RowInit, StepResult
from tests.unit.worker.driver import Driver, make_engine

SPEC = EngineSpec(
    engine_id="w", group=["w"], model="m", tp_size=1, device="cuda", dtype="bfloat16", attention_backend="triton",
    page_size=16, num_pages=1000, max_rows=8, context_length=4096, vocab_size=320, prefill_tokens=2048, mask_slots=8,
)  # fmt: skip


def sizes(spec: EngineSpec, *, thorough: bool = True) -> list[tuple[int, int]]:
    """(prompt tokens, decode rows) of each plan."""

    def count(values: np.ndarray | None) -> int:
        return 0 if values is None else len(values)

    return [(count(p.ext_tokens), count(p.decode_rows)) for p in warm_up_plans(spec, thorough=thorough)]


def test_a_thorough_warm_up_has_the_longest_prompt_of_a_step_beside_a_decode_row() -> None:
    assert sizes(SPEC) == [(32, 0), (0, 1), (0, 1), (2048, 1), (0, 2), (0, 2)]


def test_a_thorough_warm_up_samples_with_filters_penalties_bias_and_logprobs() -> None:
    plan = next(p for p in warm_up_plans(SPEC, thorough=True) if p.new_rows and p.new_rows[0].row == 1)
    init, plain = plan.new_rows[0], RowInit(1)
    same = {f.name for f in dataclasses.fields(RowInit) if getattr(init, f.name) == getattr(plain, f.name)}
    assert same <= {
        "row",
        "temperature",
        "frequency_penalty",
        "num_generated",
        "history_ids",
        "output_ids",
        "position_delta",
    }
    assert plan.ext_lp_starts is not None
    assert plan.ext_lp_starts.tolist() == [2046]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"context_length": 7, "num_pages": 1}, [(1, 0), (0, 1), (0, 1)]),
        ({"context_length": 6}, []),
        ({"num_pages": 8}, [(32, 0), (0, 1), (0, 1), (74, 1), (0, 2), (0, 2)]),
        ({"num_pages": 3}, [(32, 0), (0, 1), (0, 1)]),
        ({"max_rows": 1}, [(32, 0), (0, 1), (0, 1)]),
        ({"context_length": 100}, [(32, 0), (0, 1), (0, 1), (94, 1), (0, 2), (0, 2)]),
    ],
)
def test_a_warm_up_takes_what_room_there_is(changes: dict[str, int], expected: list[tuple[int, int]]) -> None:
    assert sizes(dataclasses.replace(SPEC, **changes)) == expected  # type: ignore[arg-type]


def test_a_warm_up_that_is_not_thorough_is_short() -> None:
    assert sizes(SPEC, thorough=False) == [(32, 0), (0, 1), (0, 1)]


@pytest.mark.parametrize("flags", [{}, {"page_size": 1, "max_total_tokens": 96}, {"context_length": 9}])
def test_an_engine_can_execute_every_plan_of_its_warm_up(llama: tuple[Path, Any], flags: dict[str, Any]) -> None:
    engine = make_engine(llama[0], max_prefill_tokens=200, **flags)
    plans = list(warm_up_plans(engine.spec, thorough=True))
    results = [engine.execute(plan) for plan in plans]
    assert all(isinstance(result, StepResult) for result in results), results
    assert [len(r.tokens) for r in results] == [len(p.new_rows) + len(p.decode_rows) for p in plans]  # type: ignore[union-attr,arg-type]
    last = results[-1]
    assert isinstance(last, StepResult)
    assert (last.top_ids is not None) == (len(plans) == 6)


def test_a_warm_up_leaves_nothing_behind(llama: tuple[Path, Any]) -> None:
    engine = make_engine(llama[0], random_seed=1)
    prompts, inits = [list(range(3, 43)), [7, 8]], [RowInit(0, seed=3), RowInit(1, seed=4)]
    before = Driver(engine).generate(prompts, 6, inits=inits)
    engine.warm_up(thorough=True)
    assert (engine.session, engine.last_seq) == ("", -1)
    assert Driver(engine).generate(prompts, 6, inits=inits) == before

"""Plans that do not fit, sequences with gaps, and log probabilities of prompts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.engine import Engine
from shared.messages.step import EngineFault, RowInit, StepPlan, StepResult
from tests.unit.worker.driver import Driver, Extend, i32, make_engine, rewritten

GREEDY = RowInit(0, temperature=0.0)


@pytest.fixture(scope="module")
def engine(llama: tuple[Path, Any]) -> Engine:
    return make_engine(llama[0], random_seed=1)


def started(engine: Engine) -> Driver:
    """A session with row 0 prefilled (20 tokens, 64 slots)."""
    driver = Driver(engine)
    driver.run([Extend(0, range(3, 23))], new=[GREEDY])
    return driver


def test_a_plan_that_only_drops_images_is_a_step_without_tokens(engine: Engine) -> None:
    driver = started(engine)
    result = engine.execute(dataclasses.replace(driver.plan(), drop_media=i32([3])))
    assert isinstance(result, StepResult)
    assert result.tokens.size == 0
    assert driver.run(decode=[0]).tokens.size == 1


class Forgetful:
    """A prepared decode step that never fits."""

    def __init__(self) -> None:
        self.forgot = 0

    def fits(self, rows: np.ndarray) -> bool:
        return False

    def run(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError

    def forget(self) -> None:
        self.forgot += 1


def test_prepared_decode_steps_are_told_when_a_row_has_another_owner_or_prompt(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, told = Forgetful(), []
    monkeypatch.setattr(engine, "_decode_program", prepared)
    driver = started(engine)
    for extends, new in (([], []), ([Extend(0, [5], start=10)], []), ([], []), ([], [RowInit(1)]), ([], [])):
        told.append(prepared.forgot)
        driver.run(extends, decode=[] if extends else [0], new=new)
    assert [*told, prepared.forgot] == [1, 1, 2, 2, 3, 3]


def test_a_gap_ends_the_session_and_a_new_one_begins_afresh(engine: Engine) -> None:
    driver = started(engine)
    driver.plan(decode=[0])  # lost
    fault = driver.fault(driver.plan(decode=[0]))
    assert (fault.reason, fault.seq, fault.session) == ("gap", 2, driver.session)
    assert engine.execute(driver.plan(decode=[0])) is None
    again = started(engine)
    assert again.run(decode=[0]).seq == 1
    assert (engine.session, engine.last_seq) == (again.session, 1)


def test_a_plan_that_comes_twice_is_a_gap(engine: Engine) -> None:
    driver = started(engine)
    plan = driver.plan(decode=[0])
    assert isinstance(engine.execute(plan), StepResult)
    assert driver.fault(plan).reason == "gap"


def test_a_session_whose_first_plan_was_lost_is_refused_once_and_harms_nobody(engine: Engine) -> None:
    current, other = started(engine), Driver(engine)
    other.plan()
    assert other.fault(other.plan()).reason == "gap"
    assert engine.execute(other.plan()) is None
    assert current.run(decode=[0]).tokens.size == 1


def test_a_new_session_forgets_rows_and_decode_rows(engine: Engine) -> None:
    started(engine)
    driver = Driver(engine)
    assert driver.run(decode=None).tokens.size == 0
    assert "no sampled token" in driver.fault(driver.plan(decode=[0])).message


def test_plans_for_another_engine_do_not_matter_to_a_fresh_session(engine: Engine) -> None:
    driver = Driver(engine)
    result = driver.run()
    assert (result.engine_id, result.session, result.seq) == (engine.spec.engine_id, driver.session, 0)


BAD: dict[str, dict[str, Any]] = {
    "new row 16 is not in": {"new_rows": [RowInit(16)]},
    "new row -1 is not in": {"new_rows": [RowInit(-1)]},
    "given away twice": {"new_rows": [RowInit(1), RowInit(1)]},
    "stop_ids 320": {"new_rows": [RowInit(1, stop_ids=[320], min_new_tokens=1)]},
    "over 128 stop_ids": {"new_rows": [RowInit(1, stop_ids=[2] * 129, min_new_tokens=1)]},
    "history_ids -1": {"new_rows": [RowInit(1, history_ids=[-1], repetition_penalty=2.0)]},
    "logit_bias id": {"new_rows": [RowInit(1, logit_bias={"9999": 1.0})]},
    "repetition_penalty must": {"new_rows": [RowInit(1, repetition_penalty=0.0)]},
    "temperature -1": {"new_rows": [RowInit(1, temperature=-1.0)]},
    "page_rows 99": {"page_rows": i32([99]), "page_starts": i32([1]), "page_lens": i32([1])},
    "page_starts 0": {"page_rows": i32([1]), "page_starts": i32([0]), "page_lens": i32([1])},
    "page_lens 0": {"page_rows": i32([1]), "page_starts": i32([1]), "page_lens": i32([0])},
    "last page of a run": {"page_rows": i32([1]), "page_starts": i32([128]), "page_lens": i32([2])},
    "page_lens differ": {"page_rows": i32([1, 2]), "page_starts": i32([1]), "page_lens": i32([1])},
    "pages of a row": {"page_rows": i32([1, 1]), "page_starts": i32([1, 1]), "page_lens": i32([20, 20])},
    "ext_rows 77": {"ext_rows": i32([77])},
    "extended twice": {"ext_rows": i32([0, 0]), "ext_starts": i32([0, 0]), "ext_lens": i32([1, 1]),
                       "ext_tokens": i32([1, 2]), "ext_sample": np.ones(2, np.uint8)},
    "ext_starts has 2 entries": {"ext_starts": i32([0, 1])},
    "ext_lens 0": {"ext_lens": i32([0])},
    "ext_tokens for": {"ext_tokens": i32([1, 2, 3])},
    "ext_tokens 320": {"ext_tokens": i32([320, 1])},
    "ext_tokens -5": {"ext_tokens": i32([-5, 1])},
    "ext_starts -1": {"ext_starts": i32([-1])},
    "row 0 would hold 65": {"ext_starts": i32([63])},
    "row 1 would hold 2 tokens": {"ext_rows": i32([1]), "ext_starts": i32([0])},
    "ext_next has 0": {"ext_lp_starts": i32([0])},
    "both extended and decoded": {"decode_rows": i32([0])},
    "decoded twice": {"ext_rows": None, "ext_starts": None, "ext_lens": None, "ext_tokens": None, "ext_sample": None,
                      "decode_rows": i32([0, 0])},
    "decode_rows 16": {"decode_rows": i32([16])},
    "row [2] is decoded but": {"decode_rows": i32([2])},
    "2 dimensions": {"decode_rows": i32([[1]])},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_a_plan_that_does_not_fit_is_a_fault_and_changes_nothing(engine: Engine, message: str) -> None:
    driver = started(engine)
    good = driver.plan([Extend(0, [5, 6], start=20)])
    fault = driver.fault(dataclasses.replace(good, **BAD[message]))
    assert fault.reason == "execution"
    assert message in fault.message
    assert engine.execute(good) is None  # the session is over
    # What the pool holds is as it was: the next session uses it as a cached prefix.
    after = Driver(engine)
    after.free = [page for page in after.free if page not in driver.pages_of[0]]
    result = after.run([Extend(0, [5, 6], start=20)], new=[GREEDY], shared_pages={0: driver.pages_of[0]})
    assert result.tokens.tolist() == started(engine).run([Extend(0, [5, 6], start=20)]).tokens.tolist()


def test_a_row_is_refused_beyond_the_context(engine: Engine) -> None:
    driver = Driver(engine)
    driver.run([Extend(0, [4] * 512)], new=[GREEDY])
    assert "row 0 would hold 513" in driver.fault(driver.plan(decode=[0])).message


def test_a_row_can_be_given_to_another_request_in_the_plan_that_uses_it(engine: Engine) -> None:
    fresh = Driver(engine)
    wanted = fresh.generate([[9, 8, 7, 6, 5]], 4)
    driver = started(engine)
    driver.run(decode=[0])
    assert driver.generate([[9, 8, 7, 6, 5]], 4) == wanted


def test_prompt_logprobs_match_transformers_from_any_position_in_any_chunks(
    engine: Engine, llama: tuple[Path, Any]
) -> None:
    ids, other = list(range(10, 150)), list(range(200, 260))
    with torch.no_grad():
        table = llama[1](torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = table[range(139), ids[1:]].numpy()
    for first in (0, 1, 50, 139):
        driver, got = Driver(engine), []
        inits = [RowInit(0, temperature=0.0, top_logprobs_num=2), RowInit(1, temperature=0.0)]
        driver.run([Extend(1, other)], new=inits[1:])
        for at, stop in ((0, 45), (45, 46), (46, 120), (120, 140)):
            follows = ids[stop] if stop < 140 else -1
            extend = Extend(0, ids[at:stop], at, stop == 140, first, follows)
            result = driver.run([extend], decode=[1], new=inits[:1] if at == 0 else [])
            assert result.prompt_counts is not None
            assert result.prompt_counts.tolist() == [len(result.prompt_logprobs)]
            got += result.prompt_logprobs.tolist()
        assert np.array(got) == pytest.approx(wanted[max(first, 1) - 1 :], abs=1e-3)


def test_top_prompt_logprobs_are_padded_for_rows_that_ask_for_fewer(engine: Engine, llama: tuple[Path, Any]) -> None:
    a, b = list(range(20, 30)), list(range(40, 45))
    driver = Driver(engine)
    result = driver.run(
        [Extend(0, a, lp_start=8), Extend(1, b, lp_start=3), Extend(2, [5, 6])],
        new=[
            RowInit(0, temperature=0.0, top_logprobs_num=1, return_logprob=True),
            RowInit(1, temperature=0.0, top_logprobs_num=3, return_logprob=True), RowInit(2, temperature=0.0),
        ],
    )  # fmt: skip
    with torch.no_grad():
        tables = [llama[1](torch.tensor([ids])).logits[0].log_softmax(-1) for ids in (a, b)]
    assert result.prompt_counts.tolist() == [2, 2, 0]
    assert result.prompt_top_ids[:2, 0].tolist() == tables[0][7:9].argmax(-1).tolist()
    assert (result.prompt_top_ids[:2, 1:] == -1).all()
    assert result.prompt_top_ids[2:].tolist() == tables[1][2:4].topk(3).indices.tolist()
    assert result.logprobs == pytest.approx([float(tables[0][-1].max()), float(tables[1][-1].max()), 0.0], abs=1e-4)


def test_a_result_tells_where_the_time_went(engine: Engine) -> None:
    timing = started(engine).run(decode=[0]).timing
    assert min(timing.prepare_ms, timing.forward_ms, timing.sample_ms) > 0


def test_weights_of_nan_give_tokens_and_finite_logprobs(llama: tuple[Path, Any], tmp_path: Path) -> None:
    def poison(weights: dict[str, Any]) -> dict[str, Any]:
        return weights | {"model.norm.weight": torch.full((48,), float("nan"))}

    result = Driver(make_engine(rewritten(llama[0], tmp_path / "nan", poison))).run(
        [Extend(0, [4, 5, 6], lp_start=0)],
        new=[RowInit(0, temperature=0.7, return_logprob=True, top_logprobs_num=2)],
    )
    assert 0 <= result.tokens[0] < 320
    assert np.isfinite(result.logprobs).all()
    assert np.isfinite(result.prompt_logprobs).all()


def test_a_fault_names_engine_session_and_plan(engine: Engine) -> None:
    driver = started(engine)
    plan: StepPlan = driver.plan(decode=[5])
    assert driver.fault(plan) == EngineFault(
        engine.spec.engine_id, driver.session, 1, "execution", "plan: row [5] is decoded but has no sampled token"
    )

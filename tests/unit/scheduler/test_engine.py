from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from services.scheduler.config import SchedulerConfig
from shared import messages as m
from shared.messages.generation import ABORTED, LENGTH, RUNNING
from tests.fakes.engine import engine_info, expected_tokens
from tests.fakes.scheduler_driver import Driver, extended_tokens


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_never_more_plans_under_way_than_the_pipeline_is_deep(depth: int) -> None:
    driver = Driver(config=SchedulerConfig(pipeline_depth=depth))
    for i in range(3):
        driver.submit([3 + i], 20, ignore_eos=True)
    most = 0
    while driver.pump() or driver.plans:
        most = max(most, len(driver.plans))
        assert len(driver.plans) == len(driver.session.in_flight) <= depth
        driver.answer()
    assert most == depth


def test_depth_one_sends_a_plan_only_after_the_answer_to_the_one_before() -> None:
    driver = Driver(config=SchedulerConfig(pipeline_depth=1))
    driver.submit([3], 5, ignore_eos=True)
    assert driver.pump() == 1
    assert driver.pump() == 0
    driver.answer()
    assert driver.pump() == 1


def test_plans_are_numbered_without_gaps_in_one_session() -> None:
    driver = Driver()
    driver.submit([3] * 40, 10, ignore_eos=True)
    driver.run()
    assert [plan.seq for plan in driver.history] == list(range(len(driver.history)))
    assert {plan.session for plan in driver.history} == {"session-0"}


def test_nothing_to_do_is_no_plan() -> None:
    driver = Driver()
    assert driver.pump() == 0
    driver.submit([3], 2, ignore_eos=True)
    driver.run()
    assert driver.pump() == 0


def test_decode_rows_travel_only_when_they_change() -> None:
    driver = Driver()
    driver.submit([3], 8, ignore_eos=True)
    driver.submit([4], 4, ignore_eos=True)
    driver.run()
    told = [None if p.decode_rows is None else p.decode_rows.tolist() for p in driver.history]
    assert told == [[], [0, 1], None, None, [0], None, None, None]


def test_the_first_plan_of_a_session_tells_its_decode_rows() -> None:
    driver = Driver()
    driver.submit([3], 2, ignore_eos=True)
    driver.pump()
    driver.plans.clear()
    driver.open()
    driver.pump()
    assert driver.plans[0].seq == 0
    assert driver.plans[0].decode_rows is not None


def test_a_row_is_told_its_pages_once_and_in_runs() -> None:
    driver = Driver(engine_info(num_pages=100, page_size=4))
    driver.submit(list(range(3, 23)), 9, ignore_eos=True)
    driver.run()
    runs = [
        (start, count)
        for p in driver.history
        if p.page_rows is not None and p.page_starts is not None and p.page_lens is not None
        for start, count in zip(p.page_starts.tolist(), p.page_lens.tolist(), strict=True)
    ]
    assert runs == [(1, 5), (6, 1), (7, 1)]  # 20 prompt tokens, then a page for every 4 generated


def rows_of(plan: m.StepPlan, before: list[int]) -> tuple[set[int], list[int]]:
    """(all rows that the plan touches, its decode rows)."""
    decode = before if plan.decode_rows is None else plan.decode_rows.tolist()
    return set(decode) | set([] if plan.ext_rows is None else plan.ext_rows.tolist()), decode


@pytest.mark.parametrize("prompt", [[3], list(range(3, 203))])
def test_no_plan_built_after_an_abort_holds_the_row(prompt: list[int]) -> None:
    """Neither of a decoding request nor of one whose prompt is being computed."""
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=50))
    driver.submit([9], 100, ignore_eos=True)
    driver.step()
    victim = driver.submit(prompt, 100, ignore_eos=True)
    driver.step()
    driver.step()
    row = driver.req(victim).row
    assert row >= 0
    built = len(driver.history)
    driver.abort(victim)
    assert driver.outputs[victim].finish == ABORTED
    for _ in range(10):
        driver.step()
    decode: list[int] = []
    for i, plan in enumerate(driver.history):
        touched, decode = rows_of(plan, decode)
        assert i < built or row not in touched
    assert driver.scheduler.running_reqs == 1


def test_a_waiting_request_is_aborted_where_it_waits() -> None:
    driver = Driver(engine_info(max_rows=1))
    driver.submit([3], 5, ignore_eos=True)
    waiting = driver.submit([4], 5)
    driver.step()
    driver.abort(waiting)
    assert (driver.outputs[waiting].finish, driver.scheduler.queue_reqs) == (ABORTED, 0)


def test_a_silent_abort_says_nothing() -> None:
    driver = Driver()
    handle = driver.submit([3], 50, ignore_eos=True)
    driver.step()
    driver.abort(handle, silent=True)
    driver.run()
    assert driver.outputs[handle].finish == RUNNING
    assert driver.scheduler.running_reqs == 0


def test_a_row_and_its_pages_wait_for_the_last_plan_that_touches_them() -> None:
    driver = Driver(engine_info(num_pages=60, max_rows=1), SchedulerConfig(pipeline_depth=3, disable_radix_cache=True))
    first = driver.submit([3] * 30, 20, ignore_eos=True)
    for _ in range(3):
        driver.pump()
    assert len(driver.plans) == 3
    driver.abort(first)
    driver.submit([4] * 30, 1)
    for left in (2, 1):
        driver.answer()
        assert driver.pump() == 0
        assert driver.session.pool.rows.used_rows == 1
        assert len(driver.plans) == left
    driver.answer()
    assert driver.pump() == 1
    assert driver.session.pool.rows.used_rows == 1
    driver.run()


def test_the_end_is_learned_late_and_what_came_after_it_is_ignored() -> None:
    """Depth 3, end of sequence at the first token: two surplus steps were sent."""
    driver = Driver(config=SchedulerConfig(pipeline_depth=3), eos_every=1)
    handle = driver.submit([3, 4], 50)
    driver.run()
    assert driver.outputs[handle].tokens == [2]
    assert len(driver.history) == 3
    driver.scheduler.flush()
    assert driver.session.pool.allocator.free_pages == driver.info.num_pages


def test_max_new_tokens_is_not_overshot() -> None:
    driver = Driver(config=SchedulerConfig(pipeline_depth=4))
    driver.submit([3], 5, ignore_eos=True)
    driver.run()
    assert len(driver.history) == 5


def test_a_request_for_no_tokens_computes_its_prompt_and_ends() -> None:
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=16))
    handle = driver.submit([*range(3, 43)], 0, logprob_start=0)
    driver.run()
    out = driver.outputs[handle]
    assert (out.tokens, out.finish, out.cached) == ([], LENGTH, 0)
    assert len(out.prompt_logprobs) == 40
    assert extended_tokens(driver.history) == 40
    assert driver.scheduler.running_reqs == 0


def fill(driver: Driver, count: int, prompt: int, new: int) -> dict[int, list[int]]:
    """Submit requests; returns what each must generate."""
    wanted = {}
    for i in range(count):
        tokens = [3 + i] * prompt
        driver.now += 1.0
        wanted[driver.submit(tokens, new, ignore_eos=True)] = expected_tokens(tokens, new, driver.info.vocab_size)
    return wanted


def test_retraction_takes_the_latest_and_keeps_the_oldest() -> None:
    driver = Driver(engine_info(num_pages=100, max_rows=4), SchedulerConfig(schedule_conservativeness=0.01))
    wanted = fill(driver, 4, prompt=10, new=60)
    oldest, latest = min(wanted), max(wanted)
    while driver.scheduler.totals.retractions == 0:
        driver.step()
    assert driver.req(latest).row < 0 or driver.req(latest).retracting
    assert driver.session.pool.rows.decoding[driver.req(oldest).row]
    ended: list[int] = []
    while driver.pump() or driver.plans:
        driver.answer()
        ended += [h for h in wanted if driver.outputs[h].finish == LENGTH and h not in ended]
    assert ended == sorted(wanted)
    assert {h: driver.outputs[h].tokens for h in wanted} == wanted


@pytest.mark.parametrize("page_size", [1, 16])
def test_only_as_many_are_retracted_as_the_others_need(page_size: int) -> None:
    """Pages of a retracted row count as soon as they are sure to come, not only when they are free."""
    driver = Driver(
        engine_info(num_pages=480 // page_size, page_size=page_size, max_rows=8),
        SchedulerConfig(schedule_conservativeness=0.01),
    )
    fill(driver, 8, prompt=10, new=70)
    while driver.scheduler.totals.retractions == 0:
        driver.step()
    assert driver.scheduler.totals.retractions == 1
    driver.run()
    assert driver.scheduler.totals.retractions <= 4


@pytest.mark.parametrize("depth", [1, 2])
def test_the_last_request_is_not_stuck_with_copies_of_cached_pages(depth: int) -> None:
    """Two prompts compute the same short prefix side by side; one of them then holds its pages twice."""
    driver = Driver(
        engine_info(num_pages=100, max_rows=2),
        SchedulerConfig(schedule_conservativeness=0.01, pipeline_depth=depth),
    )
    prompt = [*[5] * 30, *range(3, 33)]
    driver.submit([5] * 31, 2, ignore_eos=True)
    twice = driver.submit(prompt, 40, ignore_eos=True)
    driver.run()
    assert driver.outputs[twice].tokens == expected_tokens(prompt, 40, 1000)
    assert driver.outputs[twice].finish == LENGTH
    driver.check()


def test_a_retracted_request_resumes_from_the_cache_and_repeats_nothing() -> None:
    driver = Driver(engine_info(num_pages=100, max_rows=2), SchedulerConfig(schedule_conservativeness=0.01))
    wanted = fill(driver, 2, prompt=10, new=60)
    while driver.scheduler.totals.retractions == 0:
        driver.step()
    driver.run()
    resumed = [init for p in driver.history[1:] for init in p.new_rows]
    assert [init.num_generated > 0 for init in resumed] == [True]
    assert {h: driver.outputs[h].tokens for h in wanted} == wanted
    assert all(driver.outputs[h].cached == 0 for h in wanted)


def test_a_request_retracted_before_its_first_token_still_learns_what_was_cached() -> None:
    driver = Driver(
        engine_info(num_pages=220, max_rows=4),
        SchedulerConfig(schedule_conservativeness=0.01, chunked_prefill_size=21),
    )
    warm = [7] * 60
    driver.submit(warm, 1)
    driver.run()
    driver.submit([9], 130, ignore_eos=True)
    while driver.session.pool.available_pages > 162:  # 60 cached, 100 to compute
        driver.step()
    late = driver.submit([*warm, *[8] * 100], 3, ignore_eos=True)
    while driver.scheduler.totals.retractions == 0:
        driver.step()
    assert driver.outputs[late].tokens == []
    assert driver.outputs[late].cached == -1
    driver.run()
    assert driver.outputs[late].cached == 60
    assert driver.outputs[late].tokens == expected_tokens([*warm, *[8] * 100], 3, 1000)
    assert driver.scheduler.totals.cached_tokens == 60


def test_load_counts_waiting_and_running_tokens() -> None:
    driver = Driver(engine_info(max_rows=1))
    driver.submit([3] * 10, 5, ignore_eos=True)
    driver.submit([4] * 7, 5, ignore_eos=True)
    assert driver.session.load_tokens == 17
    driver.pump()
    driver.answer()
    assert driver.session.load_tokens == 18
    driver.run()
    assert driver.session.load_tokens == 0


def test_statistics_account_for_every_page() -> None:
    driver = Driver(engine_info(num_pages=100, max_rows=4))
    driver.submit([3] * 10, 2, ignore_eos=True)
    driver.run()
    driver.submit([4] * 5, 20, ignore_eos=True)
    driver.step()
    s = driver.session.stats()
    assert s.free_pages + s.evictable_pages + s.protected_pages + s.private_pages == s.total_pages == 100
    assert (s.evictable_pages, s.protected_pages) == (11, 5)
    assert s.running_reqs == 1


def test_stop_ids_beyond_the_vocabulary_do_no_harm() -> None:
    driver = Driver(engine_info(vocab_size=10))
    engine = driver.session
    handle = driver.submit([3], 3, ignore_eos=True)
    req = driver.req(handle)
    req.stop_ids = frozenset({5000})
    engine.push(req)
    assert not engine.stop_lookup.any()
    assert engine.stop_lookup.dtype == np.bool_


def test_short_steps_are_sent_further_ahead_and_long_ones_are_not() -> None:
    driver = Driver()
    driver.submit([5] * 20, 400, ignore_eos=True)
    timing = m.StepTiming(forward_ms=1.0, sample_ms=0.2)
    assert driver.pump() == driver.session.depth == 2
    for _ in range(40):
        driver.scheduler.apply(dataclasses.replace(driver.execute(), timing=timing))
        driver.pump()
    assert (driver.session.depth, len(driver.session.in_flight)) == (3, 3)
    timing = m.StepTiming(forward_ms=12.0)
    for _ in range(10):
        driver.scheduler.apply(dataclasses.replace(driver.execute(), timing=timing))
        driver.pump()
    assert (driver.session.depth, len(driver.session.in_flight)) == (2, 2)


def test_a_depth_that_was_asked_for_stays() -> None:
    driver = Driver(config=SchedulerConfig(pipeline_depth=1))
    driver.session.stepped(m.StepTiming(forward_ms=0.1))
    assert driver.session.depth == 1

from __future__ import annotations

import pytest

from services.scheduler.admission import AdmissionBudget
from services.scheduler.config import SchedulerConfig
from services.scheduler.rows import RowTable
from shared import messages as m
from shared.messages.generation import LENGTH
from tests.fakes.engine import engine_info, expected_tokens
from tests.fakes.scheduler_driver import Driver, extended_tokens

PREFIX = list(range(3, 203))  # 200 tokens


def decoding(plans: list[m.StepPlan]) -> list[int]:
    """Decode rows of each plan; plans that say "as before" resolved."""
    out: list[int] = []
    for plan in plans:
        out.append(out[-1] if plan.decode_rows is None else len(plan.decode_rows))
    return out


def extending(plans: list[m.StepPlan]) -> list[int]:
    """Prompt tokens of each plan."""
    return [extended_tokens([plan]) for plan in plans]


def test_a_long_prompt_is_computed_in_chunks_beside_decode_rows() -> None:
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=32))
    short = driver.submit([5, 6, 7], 40, ignore_eos=True)
    driver.step()
    first = len(driver.history)
    long = driver.submit(PREFIX, 4, ignore_eos=True)
    driver.run()
    mixed = [(d, e) for d, e in zip(decoding(driver.history), extending(driver.history), strict=True)][first:]
    assert [e for _, e in mixed if e] == [31] * 6 + [14]
    assert all(d == 1 for d, e in mixed if e)
    assert driver.outputs[short].tokens == expected_tokens([5, 6, 7], 40, 1000)
    assert driver.outputs[long].tokens == expected_tokens(PREFIX, 4, 1000)


def test_a_step_never_has_more_tokens_than_its_budget() -> None:
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=64))
    for i in range(12):
        driver.submit([3 + i] * (10 + 13 * i), 20, ignore_eos=True)
    driver.run()
    steps = zip(decoding(driver.history), extending(driver.history), strict=True)
    assert all(d + e <= 64 for d, e in steps)


def test_prompts_make_progress_even_when_decode_rows_fill_the_budget() -> None:
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=4))
    for _ in range(6):
        driver.submit([5], 60, ignore_eos=True)
    driver.step()
    driver.step()
    late = driver.submit([9, 9, 9, 9], 1, ignore_eos=True)
    driver.run()
    assert driver.outputs[late].tokens == expected_tokens([9, 9, 9, 9], 1, 1000)


def test_without_chunking_a_prompt_is_one_chunk() -> None:
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=-1))
    driver.submit(PREFIX, 1)
    driver.run()
    assert extending(driver.history) == [200]


@pytest.mark.parametrize("page_size", [1, 16])
def test_identical_prompts_that_come_together_are_computed_once(page_size: int) -> None:
    info = engine_info(num_pages=20_000 // page_size, page_size=page_size, max_rows=64, context_length=1024)
    driver = Driver(info, SchedulerConfig(chunked_prefill_size=-1))
    handles = [driver.submit(PREFIX, 8, ignore_eos=True) for _ in range(64)]
    driver.run()
    rest = 200 - 199 // page_size * page_size  # at least one token is computed for its logits
    assert extended_tokens(driver.history) == 200 + 63 * rest
    want = expected_tokens(PREFIX, 8, 1000)
    assert all(driver.outputs[h].tokens == want for h in handles)
    assert [driver.outputs[h].cached for h in handles] == [0] + [200 - rest] * 63


def test_a_shared_prefix_in_chunks_is_computed_once_by_those_who_come_meanwhile() -> None:
    info = engine_info(num_pages=20_000, max_rows=64, context_length=1024)
    driver = Driver(info, SchedulerConfig(chunked_prefill_size=50))
    driver.submit([*PREFIX, 3], 4)
    driver.step()
    for i in range(10):
        driver.submit([*PREFIX, 500 + i, 7], 4)
    driver.run()
    assert extended_tokens(driver.history) == 201 + 10 * 2


def test_nobody_waits_for_a_prefix_too_short_to_matter() -> None:
    driver = Driver()
    driver.submit([*range(3, 23), 7], 1)
    driver.submit([*range(3, 23), 8], 1)
    driver.pump()
    assert driver.plans[0].ext_rows is not None
    assert len(driver.plans[0].ext_rows) == 2


def test_nobody_waits_for_the_prefix_of_another_salt_or_without_the_cache() -> None:
    for config, salt in ((SchedulerConfig(), "other"), (SchedulerConfig(disable_radix_cache=True), "")):
        driver = Driver(config=config)
        driver.submit(PREFIX, 1)
        driver.submit(PREFIX, 1, salt=salt)
        driver.pump()
        assert extended_tokens(list(driver.plans)) == 400


def test_prompts_of_one_length_with_equal_middles_do_not_wait_for_each_other() -> None:
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=450))
    for start in (3, 4):
        driver.submit([start, *[9] * 99], 1)
    driver.run()
    first = len(driver.history)
    for start in (3, 4):
        driver.submit([start, *[9] * 99, *PREFIX], 1)
    driver.pump()
    assert extended_tokens(driver.history[first:]) == 400


@pytest.mark.parametrize(("page_size", "cached"), [(1, 200), (16, 192)])
def test_a_cached_prefix_is_not_computed_again(page_size: int, cached: int) -> None:
    driver = Driver(engine_info(num_pages=2000 // page_size, page_size=page_size))
    driver.submit(PREFIX, 3)
    driver.run()
    first = len(driver.history)
    again = driver.submit([*PREFIX, 7, 8, 9], 3)
    driver.run()
    assert extended_tokens(driver.history[first:]) == 203 - cached
    assert driver.outputs[again].cached == cached
    assert driver.outputs[again].tokens == expected_tokens([*PREFIX, 7, 8, 9], 3, 1000)


def test_the_next_turn_of_a_chat_finds_prompt_and_answer_in_the_cache() -> None:
    driver = Driver()
    answer = expected_tokens(PREFIX, 10, 1000)
    driver.submit(PREFIX, 10, ignore_eos=True)
    driver.run()
    turn = driver.submit([*PREFIX, *answer, 7, 7, 7], 2)
    driver.run()
    assert driver.outputs[turn].cached == 200 + 9  # the last token of the answer was never fed


def test_prompt_logprobs_are_computed_from_the_position_before_the_first_wanted() -> None:
    driver = Driver()
    driver.submit(PREFIX, 1)
    driver.run()
    for start, computed in ((0, 200), (1, 200), (150, 51), (199, 2)):
        first = len(driver.history)
        handle = driver.submit(PREFIX, 1, logprob_start=start)
        driver.run()
        assert extended_tokens(driver.history[first:]) == computed
        wanted = [-float(t) for t in PREFIX[start:]]
        assert driver.outputs[handle].prompt_logprobs[start == 0 :] == wanted[start == 0 :]


def test_requests_wait_while_the_running_ones_are_expected_to_need_the_pool() -> None:
    driver = Driver(engine_info(num_pages=1000, max_rows=16), SchedulerConfig(chunked_prefill_size=-1))
    for i in range(10):
        driver.submit([3 + i] * 20, 300, ignore_eos=True)
    driver.pump()
    # 20 prompt tokens and an expected 0.7 * 300 each: four fit into 1,000.
    assert driver.scheduler.running_reqs == 4
    assert driver.scheduler.queue_reqs == 6


def test_a_request_that_would_fill_the_pool_alone_runs_alone() -> None:
    driver = Driver(engine_info(num_pages=300, max_rows=16))
    small = driver.submit([5, 6], 10, ignore_eos=True)
    driver.pump()
    huge = driver.submit(PREFIX, 100, ignore_eos=True)
    driver.pump()
    assert driver.req(huge).row < 0
    driver.run()
    assert driver.outputs[small].finish == LENGTH
    assert driver.outputs[huge].tokens == expected_tokens(PREFIX, 100, 1000)


def test_no_row_is_given_twice() -> None:
    driver = Driver(engine_info(max_rows=2))
    handles = [driver.submit([3 + i], 5, ignore_eos=True) for i in range(7)]
    while driver.pump() or driver.plans:
        assert driver.scheduler.running_reqs <= 2
        driver.answer()
    assert all(driver.outputs[h].finish == LENGTH for h in handles)


def rows_that_generate(*generated: int, max_new: int) -> RowTable:
    rows = RowTable(max_rows=8, context_length=16, page_size=1)
    for row, count in enumerate(generated):
        rows.done[row] = False
        rows.out_known[row] = rows.out_sent[row] = count
        rows.max_new[row] = max_new
    return rows


def test_the_expectation_falls_while_all_goes_well_down_to_a_floor() -> None:
    budget = AdmissionBudget(1.0)
    rows = rows_that_generate(10, max_new=110)
    assert budget.expected_tokens(rows) == pytest.approx(70)
    for _ in range(1000):
        budget.decay()
    assert budget.expected_tokens(rows) == pytest.approx(14)


def test_a_retraction_raises_the_expectation_to_what_was_seen() -> None:
    budget = AdmissionBudget(1.0)
    for _ in range(1000):
        budget.decay()
    budget.after_retraction(rows_that_generate(60, 60, max_new=100))
    assert budget.ratio == pytest.approx(0.8)


def test_a_conservative_scheduler_expects_more() -> None:
    assert AdmissionBudget(0.5).ratio < AdmissionBudget(1.0).ratio < AdmissionBudget(10.0).ratio == 1.0

"""A plan or an answer that the bus lost ends the session; a step that takes long does not."""

from __future__ import annotations

import dataclasses

import pytest

from services.scheduler.config import SchedulerConfig
from services.scheduler.scheduler import MAX_LOSSES
from tests.fakes.engine import expected_tokens
from tests.fakes.scheduler_driver import Driver


def running(depth: int = 2, steps: int = 5) -> tuple[Driver, int]:
    """A request in the middle of its tokens, the pipeline full."""
    driver = Driver(config=SchedulerConfig(pipeline_depth=depth, step_timeout_s=120.0))
    handle = driver.submit([3, 4, 5], 30, ignore_eos=True)
    for _ in range(steps):
        driver.step()
    driver.pump()
    return driver, handle


def goes_on_with_exact_tokens(driver: Driver, handle: int) -> None:
    assert not driver.scheduler.engines, "the session goes on"
    driver.plans.clear()
    driver.open()
    driver.run()
    assert driver.outputs[handle].tokens == expected_tokens([3, 4, 5], 30, 1000)
    assert driver.scheduler.running_reqs == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_plan_that_never_came_ends_the_session_at_the_second_report(depth: int) -> None:
    driver, handle = running(depth)
    lost = driver.session.in_flight[0].seq
    driver.report(received=lost - 1, after_s=2.0)
    assert driver.scheduler.engines
    driver.report(received=lost - 1, after_s=1.0)
    goes_on_with_exact_tokens(driver, handle)


def test_the_first_plan_of_a_session_can_be_lost_too() -> None:
    driver, handle = running(steps=0)
    older = dataclasses.replace(driver.info, session="of another scheduler", received_seq=7, last_seq=7)
    for _ in range(2):
        driver.now += 2.0
        driver.scheduler.heard(older)
    goes_on_with_exact_tokens(driver, handle)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_answer_that_never_came_ends_the_session_at_the_second_report(depth: int) -> None:
    driver, handle = running(depth)
    done = driver.session.in_flight[-1].seq
    driver.report(done=done, after_s=2.0)
    assert driver.scheduler.engines
    driver.report(done=done, after_s=1.0)
    goes_on_with_exact_tokens(driver, handle)


def test_a_long_step_is_not_mistaken_for_a_lost_plan() -> None:
    driver, handle = running()
    for _ in range(100):
        driver.report(after_s=1.0)
        driver.tick()
    driver.run()
    assert driver.outputs[handle].tokens == expected_tokens([3, 4, 5], 30, 1000)
    assert {plan.session for plan in driver.history} == {"session-0"}


def test_a_message_that_is_on_its_way_is_not_lost() -> None:
    driver, handle = running()
    for _ in range(20):
        seq = driver.session.in_flight[0].seq
        driver.report(received=seq - 1, after_s=1.0)  # the plan is not there yet
        driver.report(done=seq, after_s=1.0)  # now it is done, its answer comes next
        driver.step()
    driver.run()
    assert driver.outputs[handle].tokens == expected_tokens([3, 4, 5], 30, 1000)
    assert {plan.session for plan in driver.history} == {"session-0"}


def test_reports_that_waited_here_together_count_as_one() -> None:
    driver, _ = running()
    done = driver.session.in_flight[0].seq
    driver.now += 10.0
    for _ in range(10):
        driver.report(done=done, after_s=0.01)
    assert driver.scheduler.engines


def test_an_idle_engine_has_lost_nothing() -> None:
    driver, _ = running()
    driver.run()
    for _ in range(5):
        driver.report(received=-1, after_s=5.0)
    assert driver.scheduler.engines


def test_a_request_whose_plans_never_arrive_is_given_up_in_the_end() -> None:
    driver, handle = running(steps=0)
    for _ in range(MAX_LOSSES + 1):
        driver.pump()
        driver.report(received=-1, after_s=2.0)
        driver.report(received=-1, after_s=2.0)
        driver.plans.clear()
        driver.open()
    driver.collect()
    error = driver.outputs[handle].error
    assert error is not None
    assert error.code == "internal_error"
    assert driver.scheduler.idle

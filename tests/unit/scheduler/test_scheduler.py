from __future__ import annotations

import dataclasses

import pytest

from services.scheduler.config import SchedulerConfig
from services.scheduler.scheduler import MAX_LOSSES
from shared import messages as m
from shared.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from shared.messages.generation import ABORTED, LENGTH, RUNNING
from tests.fakes.engine import engine_info, expected_tokens
from tests.fakes.scheduler_driver import Driver, extended_tokens

OTHER = engine_info(engine_id="other-0-test")


def code(driver: Driver, handle: int) -> str | None:
    error = driver.outputs[handle].error
    return error.code if error else None


def lose_engine(driver: Driver) -> None:
    """The engine dies with whatever it was doing and nobody takes its place yet."""
    driver.plans.clear()
    driver.scheduler.close(driver.session, "test")
    driver.collect()


class TestLimits:
    def test_a_full_queue_refuses_new_requests_and_tells_what_to_do(self) -> None:
        driver = Driver(engine_info(max_rows=1), SchedulerConfig(max_queued_requests=3))
        driver.submit([3], 50, ignore_eos=True)
        driver.step()
        for _ in range(3):
            driver.submit([4], 5)
        with pytest.raises(Overloaded, match=r"3 requests are waiting.*--max-queued-requests"):
            driver.submit([4], 5)
        driver.run()
        driver.submit([4], 5)

    def test_requests_that_wait_for_the_first_engine_count_as_queued(self) -> None:
        driver = Driver(config=SchedulerConfig(max_queued_requests=2))
        lose_engine(driver)
        driver.submit([3], 5)
        driver.submit([3], 5)
        with pytest.raises(Overloaded):
            driver.submit([3], 5)

    def test_an_empty_prompt_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="no tokens"):
            Driver().submit([], 5)

    @pytest.mark.parametrize("new", [0, 1])
    def test_a_prompt_over_the_pool_is_refused_with_its_numbers(self, new: int) -> None:
        driver = Driver(engine_info(num_pages=100, context_length=512))
        with pytest.raises(ContextLengthExceeded, match=r"prompt of 101 tokens.*pool of 100.*--max-total-tokens"):
            driver.submit([3] * 101, new)
        assert driver.scheduler.idle

    def test_a_prompt_as_large_as_the_pool_has_no_room_for_a_token(self) -> None:
        driver = Driver(engine_info(num_pages=100))
        with pytest.raises(ContextLengthExceeded):
            driver.submit([3] * 100, 1)
        handle = driver.submit([3] * 100, 0)
        driver.run()
        assert driver.outputs[handle].finish == LENGTH

    def test_output_is_clipped_to_what_the_engine_can_hold(self) -> None:
        driver = Driver(engine_info(num_pages=100))
        handle = driver.submit([3] * 40, 500, ignore_eos=True)
        driver.run()
        assert driver.outputs[handle].tokens == expected_tokens([3] * 40, 60, 1000)
        assert driver.outputs[handle].finish == LENGTH

    def test_output_is_clipped_to_the_context(self) -> None:
        driver = Driver(engine_info(num_pages=1000, context_length=64))
        handle = driver.submit([3] * 40, 500, ignore_eos=True)
        driver.run()
        assert len(driver.outputs[handle].tokens) == 24


class TestTime:
    def test_a_running_request_ends_at_its_deadline(self) -> None:
        driver = Driver()
        handle = driver.submit([3], 400, ignore_eos=True, timeout_s=10.0)
        driver.step()
        driver.tick(after_s=9.9)
        assert driver.outputs[handle].finish == RUNNING
        driver.tick(after_s=0.2)
        assert (driver.outputs[handle].finish, code(driver, handle)) == (ABORTED, "deadline_exceeded")
        driver.run()
        assert driver.scheduler.running_reqs == 0

    def test_a_waiting_request_ends_at_its_deadline(self) -> None:
        driver = Driver(engine_info(max_rows=1))
        driver.submit([3], 400, ignore_eos=True)
        handle = driver.submit([4], 4, timeout_s=1.0)
        driver.pump()
        driver.tick(after_s=2.0)
        assert code(driver, handle) == "deadline_exceeded"
        assert driver.scheduler.queue_reqs == 0

    def test_a_request_waits_no_longer_than_the_queue_timeout(self) -> None:
        driver = Driver(engine_info(max_rows=1), SchedulerConfig(queue_timeout_s=5.0))
        runs = driver.submit([3], 400, ignore_eos=True)
        waits = driver.submit([4], 4)
        driver.step()
        driver.step()
        driver.report()
        driver.tick(after_s=6.0)
        assert code(driver, waits) == "deadline_exceeded"
        assert code(driver, runs) is None

    def test_without_an_engine_the_queue_timeout_says_that_none_is_there(self) -> None:
        driver = Driver(config=SchedulerConfig(queue_timeout_s=5.0))
        lose_engine(driver)
        handle = driver.submit([3], 4)
        driver.tick(after_s=6.0)
        assert code(driver, handle) == "unavailable"

    def test_time_spent_running_is_no_time_spent_waiting(self) -> None:
        driver = Driver(config=SchedulerConfig(queue_timeout_s=5.0))
        handle = driver.submit([3], 20, ignore_eos=True)
        driver.step()
        driver.now += 60.0
        lose_engine(driver)
        driver.tick(after_s=1.0)
        assert code(driver, handle) is None
        driver.open()
        driver.run()
        assert driver.outputs[handle].tokens == expected_tokens([3], 20, 1000)

    def test_an_engine_that_falls_silent_is_lost(self) -> None:
        driver = Driver()
        driver.tick(after_s=14.0)
        assert driver.scheduler.engines
        driver.report()
        driver.tick(after_s=14.0)
        assert driver.scheduler.engines
        driver.tick(after_s=2.0)
        assert not driver.scheduler.engines

    def test_an_engine_that_lives_but_does_not_answer_a_step_is_lost(self) -> None:
        driver = Driver(config=SchedulerConfig(step_timeout_s=30.0))
        driver.submit([3], 20)
        driver.pump()
        for _ in range(3):
            driver.report()
            driver.tick(after_s=10.0)
        assert driver.scheduler.engines
        driver.report()
        driver.tick(after_s=1.0)
        assert not driver.scheduler.engines


class TestLostEngines:
    def test_requests_continue_on_a_new_session_with_exact_tokens(self) -> None:
        driver = Driver(config=SchedulerConfig(chunked_prefill_size=20))
        wanted = {}
        for i in range(20):  # running, computing their prompts, waiting
            prompt = [3 + i] * (1 + 5 * i)
            wanted[driver.submit(prompt, 25, ignore_eos=True)] = expected_tokens(prompt, 25, 1000)
        for _ in range(10):
            driver.step()
        lose_engine(driver)
        assert len(driver.scheduler.unrouted) == driver.scheduler.queue_reqs == 20
        driver.open()
        driver.run()
        assert {h: driver.outputs[h].tokens for h in wanted} == wanted

    def test_requests_continue_on_another_engine(self) -> None:
        driver = Driver()
        driver.open(OTHER)
        wanted = {}
        for i in range(12):
            wanted[driver.submit([3 + i] * 9, 25, ignore_eos=True)] = expected_tokens([3 + i] * 9, 25, 1000)
        for _ in range(10):
            driver.step()
        driver.plans = type(driver.plans)(p for p in driver.plans if p.engine_id == OTHER.engine_id)
        driver.scheduler.close(driver.session, "test")
        driver.run()
        assert {h: driver.outputs[h].tokens for h in wanted} == wanted

    def test_a_request_that_was_running_goes_before_those_that_were_not(self) -> None:
        driver = Driver(engine_info(max_rows=1))
        ran = driver.submit([3], 20, ignore_eos=True)
        driver.submit([4], 20, ignore_eos=True)
        driver.step()
        driver.step()
        lose_engine(driver)
        driver.open()
        driver.pump()
        assert driver.req(ran).row >= 0

    def test_a_request_that_takes_engines_down_is_given_up(self) -> None:
        driver = Driver()
        poison = driver.submit([3], 50, ignore_eos=True)
        for _ in range(MAX_LOSSES):
            driver.pump()
            lose_engine(driver)
            driver.open()
            assert driver.outputs[poison].error is None
        innocent = driver.submit([4], 5, ignore_eos=True)
        driver.pump()
        lose_engine(driver)
        assert code(driver, poison) == "internal_error"
        driver.open()
        driver.run()
        assert driver.outputs[innocent].tokens == expected_tokens([4], 5, 1000)

    def test_engines_that_leave_in_good_order_are_no_fault_of_a_request(self) -> None:
        driver = Driver()
        handle = driver.submit([3], 50, ignore_eos=True)
        for _ in range(MAX_LOSSES + 2):
            driver.step()
            driver.plans.clear()
            driver.scheduler.heard(dataclasses.replace(driver.info, state="draining"))
            driver.open()
        driver.run()
        assert driver.outputs[handle].tokens == expected_tokens([3], 50, 1000)

    def test_waiting_requests_have_no_part_in_a_loss(self) -> None:
        driver = Driver(engine_info(max_rows=1))
        poison = driver.submit([3], 50, ignore_eos=True)
        waits = driver.submit([4], 5, ignore_eos=True)
        for _ in range(MAX_LOSSES + 1):
            driver.pump()
            lose_engine(driver)
            driver.open()
        assert code(driver, poison) == "internal_error"
        driver.run()
        assert driver.outputs[waits].tokens == expected_tokens([4], 5, 1000)

    def test_an_engine_that_comes_back_under_its_name_replaces_the_old_one(self) -> None:
        driver = Driver()
        handle = driver.submit([3], 20, ignore_eos=True)
        driver.step()
        driver.plans.clear()
        driver.open(engine_info(engine_id="engine-0-again"))
        assert list(driver.scheduler.engines) == ["engine-0-again"]
        driver.run()
        assert driver.outputs[handle].tokens == expected_tokens([3], 20, 1000)

    def test_an_engine_leaves_by_id_or_when_its_supervisor_knows_only_its_name(self) -> None:
        driver = Driver()
        driver.open(OTHER)
        for name, engine_id in (("engine-0", "engine-0-before"), ("engine-0-rank1", ""), ("stranger", "")):
            driver.scheduler.engine_left(m.Goodbye("worker", name, engine_id, at_s=0.0))
        assert len(driver.scheduler.engines) == 2
        driver.scheduler.engine_left(m.Goodbye("worker", "engine-0", "", at_s=0.0))
        assert list(driver.scheduler.engines) == [OTHER.engine_id]
        driver.scheduler.engine_left(m.Goodbye("worker", "other-0", OTHER.engine_id, at_s=0.0))
        assert not driver.scheduler.engines

    def test_the_output_is_clipped_again_when_only_a_smaller_engine_is_left(self) -> None:
        driver = Driver(engine_info(num_pages=200))
        handle = driver.submit([3] * 20, 150, ignore_eos=True)
        too_long = driver.submit([3] * 110, 20, ignore_eos=True)
        driver.step()
        lose_engine(driver)
        driver.open(engine_info(engine_id="small-0-test", num_pages=100))
        driver.collect()
        assert code(driver, too_long) == "context_length_exceeded"
        driver.run()
        assert driver.outputs[handle].tokens == expected_tokens([3] * 20, 80, 1000)


class TestDraining:
    def test_a_draining_engine_gives_its_requests_back(self) -> None:
        driver = Driver()
        driver.open(OTHER)
        handles = [driver.submit([3 + i], 20, ignore_eos=True) for i in range(8)]
        driver.step()
        driver.plans = type(driver.plans)(p for p in driver.plans if p.engine_id == OTHER.engine_id)
        driver.scheduler.heard(dataclasses.replace(driver.info, state="draining"))
        assert list(driver.scheduler.engines) == [OTHER.engine_id]
        driver.run()
        for i, handle in enumerate(handles):
            assert driver.outputs[handle].tokens == expected_tokens([3 + i], 20, 1000)

    def test_the_scheduler_is_idle_when_every_request_had_its_last_word(self) -> None:
        driver = Driver()
        assert driver.scheduler.idle
        driver.submit([3], 3, ignore_eos=True)
        assert not driver.scheduler.idle
        driver.run()
        assert driver.scheduler.idle


class TestFirstEngine:
    def test_requests_that_came_before_it_run_on_it(self) -> None:
        driver = Driver(engine_info(num_pages=100))
        lose_engine(driver)
        fits = driver.submit([3] * 20, 200, ignore_eos=True)
        too_long = driver.submit([3] * 200, 5)
        aborted = driver.submit([4], 5)
        driver.abort(aborted)
        assert driver.outputs[aborted].finish == ABORTED
        assert driver.pump() == 0
        driver.open()
        driver.collect()
        assert code(driver, too_long) == "context_length_exceeded"
        driver.run()
        assert driver.outputs[fits].tokens == expected_tokens([3] * 20, 80, 1000)

    def test_those_whose_time_is_over_end_without_it(self) -> None:
        driver = Driver()
        lose_engine(driver)
        handle = driver.submit([3], 5, timeout_s=1.0)
        driver.tick(after_s=2.0)
        assert code(driver, handle) == "deadline_exceeded"
        assert driver.scheduler.idle


class TestTwoEngines:
    def test_a_cached_prefix_attracts(self) -> None:
        driver = Driver()
        driver.open(OTHER)
        prompt = list(range(3, 203))
        driver.submit(prompt, 1)
        driver.run()
        home = driver.history[-1].engine_id
        before = len(driver.history)
        driver.submit([*prompt, 5], 1)
        driver.run()
        assert {p.engine_id for p in driver.history[before:]} == {home}
        assert extended_tokens(driver.history[before:]) == 1

    def test_requests_without_a_prefix_spread_by_load(self) -> None:
        driver = Driver()
        driver.open(OTHER)
        for i in range(10):
            driver.submit([3 + i] * 50, 20)
        assert [len(e.queue) for e in driver.scheduler.engines.values()] == [5, 5]

    def test_what_waits_is_spread_again_when_an_engine_joins(self) -> None:
        driver = Driver(engine_info(max_rows=1))
        for i in range(9):
            driver.submit([3 + i] * 50, 100, ignore_eos=True)
        driver.step()
        assert len(driver.session.queue) == 8
        driver.open(dataclasses.replace(OTHER, max_rows=1))
        assert [len(e.queue) for e in driver.scheduler.engines.values()] == [3, 5]  # and one runs on the first
        driver.run()
        assert all(out.finish == LENGTH for out in driver.outputs.values())

    def test_no_request_goes_to_an_engine_that_cannot_hold_it(self) -> None:
        driver = Driver(engine_info(num_pages=40))
        driver.open(OTHER)
        handles = [driver.submit([3 + i] * 60, 30, ignore_eos=True) for i in range(4)]
        driver.run()
        assert {p.engine_id for p in driver.history} == {OTHER.engine_id}
        assert all(driver.outputs[h].finish == LENGTH for h in handles)


def test_a_lost_tokenizer_ends_its_requests_and_no_others() -> None:
    driver = Driver(engine_info(max_rows=2))
    lost = [driver.submit([3 + i], 50, ignore_eos=True, tokenizer="lost") for i in range(3)]
    kept = driver.submit([9], 30, ignore_eos=True)
    driver.step()
    driver.scheduler.tokenizer_lost("lost")
    driver.run()
    assert all(driver.outputs[h].finish == RUNNING for h in lost)
    assert driver.outputs[kept].tokens == expected_tokens([9], 30, 1000)
    assert driver.scheduler.idle
    assert driver.scheduler.running_reqs == 0


def test_a_flush_releases_what_nobody_holds_and_tells_what_is_held() -> None:
    driver = Driver(engine_info(num_pages=100))
    driver.submit([3] * 20, 1)
    driver.run()
    driver.submit([4] * 10, 50, ignore_eos=True)
    driver.step()
    flushed = driver.scheduler.flush()
    assert (flushed.released_pages, flushed.held_pages) == (20, 11)
    driver.run()
    assert driver.outputs[2].tokens == expected_tokens([4] * 10, 50, 1000)


def test_an_abort_of_an_unknown_handle_is_ignored() -> None:
    driver = Driver()
    handle = driver.submit([3], 2, ignore_eos=True)
    driver.abort(77)
    driver.scheduler.abort(m.AbortHandles(tokenizer_id="stranger", handles=[handle]))
    driver.run()
    driver.abort(handle)
    assert driver.outputs[handle].finish == LENGTH


def test_info_tells_where_everything_is() -> None:
    driver = Driver(engine_info(max_rows=1))
    for i in range(3):
        driver.submit([3 + i], 5, ignore_eos=True)
    driver.step()
    info = driver.scheduler.info()
    assert (info.running_reqs, info.queue_reqs, info.requests_total) == (1, 2, 3)
    assert info.engines[0].engine_id == driver.info.engine_id
    assert info.generation_tokens_total == 1
    assert set(info.step_ms) == {"order", "admit", "plan", "masks", "publish", "apply", "wait"}

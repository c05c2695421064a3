"""Forced runs and masks in the step loop, seen from outside."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from services.scheduler.config import SchedulerConfig
from shared.messages.generation import LENGTH, STOPPED
from shared.sampling import NEUTRAL
from tests.fakes.engine import engine_info
from tests.fakes.grammar import Automaton, line
from tests.fakes.scheduler_driver import EOS, Driver

RUN = list(range(100, 130))


def driver_of(depth: int = 2, **flags: bool) -> Driver:
    return Driver(engine_info(mask_slots=8), SchedulerConfig(pipeline_depth=depth, **flags))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_forced_run_costs_one_step_whatever_its_length(depth: int) -> None:
    driver = driver_of(depth)
    handle = driver.submit([5, 6, 7], 200, grammar=line(*RUN))
    driver.run()
    assert driver.outputs[handle].tokens == [*RUN, EOS]
    assert driver.outputs[handle].finish == STOPPED
    useful = [plan for plan in driver.history if plan.ext_rows is not None]
    assert len(useful) == 2
    assert useful[1].ext_forced is not None
    assert useful[1].ext_forced.tolist() == [len(RUN) - 1]  # the first was sampled with the prompt


def test_without_jumps_every_token_is_sampled_under_its_mask() -> None:
    for driver, jump in ((driver_of(disable_jump_forward=True), True), (driver_of(), False)):
        handle = driver.submit([5, 6, 7], 200, grammar=line(*RUN), jump_forward=jump)
        driver.run()
        assert driver.outputs[handle].tokens == [*RUN, EOS]
        assert all(plan.ext_forced is None for plan in driver.history)
        assert len(driver.history) >= len(RUN)


@pytest.mark.parametrize("most", [1, 2, 7, 29, 30, 31])
def test_a_run_that_crosses_max_new_tokens_is_cut_there(most: int) -> None:
    driver = driver_of()
    handle = driver.submit([5], most, grammar=line(*RUN))
    driver.run()
    assert driver.outputs[handle].tokens == [*RUN, EOS][:most]
    assert driver.outputs[handle].finish == (STOPPED if most > len(RUN) else LENGTH)


def test_a_stop_id_in_a_run_ends_the_request_there() -> None:
    driver = driver_of()
    sampling = dataclasses.replace(NEUTRAL, stop_token_ids=[110])
    handle = driver.submit([5], 200, grammar=line(*RUN), sampling=sampling)
    driver.run()
    assert driver.outputs[handle].tokens == RUN[:11]
    assert driver.outputs[handle].finish == STOPPED


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_forced_tokens_carry_their_own_logprobs(depth: int) -> None:
    """The scripted engine's logprob of a token is minus its id."""
    driver = driver_of(depth)
    constrained = driver.submit([5, 6, 7], 200, grammar=line(*RUN), logprob_start=0)
    plain = driver.submit([5, 6, 8], 9, logprob_start=-1, ignore_eos=True)
    driver.run()
    for handle in (constrained, plain):
        assert driver.outputs[handle].logprobs == [-float(token) for token in driver.outputs[handle].tokens]
    assert driver.outputs[constrained].prompt_logprobs[1:] == [-6.0, -7.0]


def test_the_forced_part_of_an_output_is_a_cached_prefix_for_the_next_turn() -> None:
    driver = driver_of()
    first = driver.submit([5, 6, 7], 200, grammar=line(*RUN))
    driver.run()
    again = driver.submit([5, 6, 7, *driver.outputs[first].tokens[:-1], 9], 1, ignore_eos=True)
    driver.run()
    assert driver.outputs[again].cached == 3 + len(RUN)


def test_a_grammar_that_is_complete_ends_even_where_eos_is_ignored() -> None:
    driver = driver_of()
    handle = driver.submit([5], 50, grammar=line(7, 8), ignore_eos=True)
    driver.run()
    assert driver.outputs[handle].tokens == [7, 8, EOS]


def test_masks_travel_once() -> None:
    """A loop through two states: the third time round nothing new is sent."""
    wide = list(range(3, 900))
    grammar = Automaton([dict.fromkeys(wide, 1), dict.fromkeys(wide[::2], 0)], frozenset())
    driver = driver_of()
    driver.submit([5], 40, grammar=grammar)
    driver.run()
    bank = driver.session.mask_bank
    assert (bank.travelled, bank.looked_up) == (2, 40)
    assert bank.travelled_bytes == 2 * (4 + 4 * 32)


def test_an_engine_without_a_bank_gets_no_constrained_request() -> None:
    driver = Driver(engine_info(mask_slots=0))
    driver.submit([5], 40, grammar=line(7))
    driver.run()
    assert driver.history == []
    driver.open(engine_info(engine_id="engine-1-test", mask_slots=4))
    driver.run()
    assert driver.outputs[1].tokens == [7, EOS]


def test_an_expected_token_that_did_not_come_fails_the_request() -> None:
    driver = driver_of()
    handle = driver.submit([5], 40, grammar=line(7, 8, 9))
    driver.pump()
    result = driver.execute()
    result.tokens[:] = np.int32(55)
    driver.scheduler.apply(result)
    driver.run()
    assert driver.outputs[handle].error is not None
    assert "forces 7" in driver.outputs[handle].error.message

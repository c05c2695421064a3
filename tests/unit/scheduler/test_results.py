from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from services.scheduler.config import SchedulerConfig
from shared import messages as m
from shared.errors import WireError
from shared.messages.generation import LENGTH, STOPPED
from shared.sampling import NEUTRAL
from tests.fakes.engine import engine_info, expected_tokens
from tests.fakes.scheduler_driver import EOS, Driver

PROMPT = list(range(3, 103))  # 100 tokens; the scripted logprob of a token is minus its id


@pytest.mark.parametrize("chunk", [-1, 7, 33])
@pytest.mark.parametrize("start", [0, 1, 40, 99])
def test_prompt_logprobs_come_once_for_each_position_whatever_the_chunks(chunk: int, start: int) -> None:
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=chunk))
    handle = driver.submit(PROMPT, 2, logprob_start=start)
    driver.run()
    got = driver.outputs[handle].prompt_logprobs
    if start == 0:
        assert math.isnan(got.pop(0))
    assert got == [-float(t) for t in PROMPT[max(start, 1) :]]


def test_a_start_beyond_the_prompt_gives_none_of_its_logprobs() -> None:
    driver = Driver()
    handle = driver.submit(PROMPT, 2, logprob_start=100)
    driver.run()
    assert driver.outputs[handle].prompt_logprobs == []
    assert driver.outputs[handle].tokens == expected_tokens(PROMPT, 2, 1000)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_retraction_in_the_middle_of_a_prompt_delivers_no_logprob_twice(depth: int) -> None:
    driver = Driver(
        engine_info(num_pages=150, max_rows=4),
        SchedulerConfig(schedule_conservativeness=0.01, chunked_prefill_size=21, pipeline_depth=depth),
    )
    driver.submit([200], 120, ignore_eos=True)
    while driver.session.pool.available_pages > 102:
        driver.step()
    handle = driver.submit(PROMPT, 2, logprob_start=0)
    while driver.scheduler.totals.retractions == 0:
        driver.step()
    assert 0 < len(driver.outputs[handle].prompt_logprobs) < 100
    driver.run()
    got = driver.outputs[handle].prompt_logprobs
    assert math.isnan(got.pop(0))
    assert got == [-float(t) for t in PROMPT[1:]]
    assert driver.outputs[handle].tokens == expected_tokens(PROMPT, 2, 1000)


def test_an_engine_lost_in_the_middle_of_a_prompt_delivers_no_logprob_twice() -> None:
    driver = Driver(config=SchedulerConfig(chunked_prefill_size=30))
    handle = driver.submit(PROMPT, 2, logprob_start=0)
    driver.step()
    driver.pump()
    driver.plans.clear()
    driver.open()
    driver.run()
    assert driver.outputs[handle].prompt_logprobs[1:] == [-float(t) for t in PROMPT[1:]]


def test_alternatives_of_prompt_positions_get_a_first_row_without_any() -> None:
    driver = Driver()
    driver.submit([3, 4, 5], 1, logprob_start=0)
    driver.pump()
    result = dataclasses.replace(
        driver.execute(),
        prompt_top_ids=np.array([[7, 8], [9, 10]], np.int32),
        prompt_top_logprobs=np.array([[-1, -2], [-3, -4]], np.float32),
    )
    driver.scheduler.apply(result)
    batch = driver.scheduler.outbox.take()[0][1]
    assert batch.prompt_counts is not None
    assert batch.prompt_top_ids is not None
    assert batch.prompt_top_logprobs is not None
    assert batch.prompt_counts.tolist() == [3]
    assert batch.prompt_top_ids.tolist() == [[-1, -1], [7, 8], [9, 10]]
    assert np.isnan(batch.prompt_top_logprobs[0]).all()


def test_logprobs_of_generated_tokens_ride_with_them() -> None:
    driver = Driver()
    plain = driver.submit([4], 3, ignore_eos=True)
    handle = driver.submit([3], 3, logprob_start=-1, ignore_eos=True)
    driver.run()
    out = driver.outputs[handle]
    assert out.logprobs == [-float(t) for t in out.tokens]
    assert driver.outputs[plain].tokens == expected_tokens([4], 3, 1000)


def test_the_end_of_sequence_ends_a_request_and_is_its_last_token() -> None:
    driver = Driver(engine_info(vocab_size=50), eos_every=7)
    handle = driver.submit([5, 6], 200)
    driver.run()
    out = driver.outputs[handle]
    assert out.finish == STOPPED
    assert out.tokens == expected_tokens([5, 6], 200, 50, EOS, 7)
    assert out.tokens.index(EOS) == len(out.tokens) - 1


def test_a_request_that_ignores_the_end_of_sequence_goes_on_beside_one_that_stops() -> None:
    driver = Driver(engine_info(vocab_size=50), eos_every=7)
    stops = driver.submit([5, 6], 100)
    ignores = driver.submit([5, 6], 100, ignore_eos=True)
    driver.run()
    assert driver.outputs[stops].finish == STOPPED
    assert driver.outputs[ignores].finish == LENGTH
    assert len(driver.outputs[ignores].tokens) == 100
    assert EOS in driver.outputs[ignores].tokens[:-1]


def test_a_stop_id_ends_only_the_request_that_named_it() -> None:
    full = expected_tokens([5], 20, 1000)
    driver = Driver()
    stops = driver.submit([5], 20, sampling=dataclasses.replace(NEUTRAL, stop_token_ids=[full[6]]))
    other = driver.submit([5], 20, ignore_eos=True)
    driver.run()
    assert (driver.outputs[stops].tokens, driver.outputs[stops].finish) == (full[:7], STOPPED)
    assert (driver.outputs[other].tokens, driver.outputs[other].finish) == (full, LENGTH)


def test_a_stop_id_as_the_last_token_allowed_counts_as_a_stop() -> None:
    full = expected_tokens([5], 4, 1000)
    driver = Driver()
    handle = driver.submit([5], 4, sampling=dataclasses.replace(NEUTRAL, stop_token_ids=[full[3]]))
    driver.run()
    assert driver.outputs[handle].finish == STOPPED


def test_a_token_outside_the_vocabulary_is_no_stop_id() -> None:
    driver = Driver()
    handle = driver.submit([5], 4)
    driver.pump()
    for strange in (-1, 1000, 2**31 - 1):
        driver.pump()
        result = driver.execute()
        driver.scheduler.apply(dataclasses.replace(result, tokens=np.full_like(result.tokens, strange)))
    driver.collect()
    assert driver.outputs[handle].tokens == [-1, 1000, 2**31 - 1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: dataclasses.replace(r, seq=r.seq + 1),
        lambda r: dataclasses.replace(r, seq=r.seq - 1),
        lambda r: dataclasses.replace(r, tokens=r.tokens[:-1]),
    ],
    ids=["a result was lost", "a result came twice", "a token is missing"],
)
def test_a_result_out_of_sequence_ends_the_session_and_the_requests_go_on(spoil) -> None:
    driver = Driver()
    handles = [driver.submit([3 + i], 12, ignore_eos=True) for i in range(3)]
    driver.step()
    driver.pump()
    with pytest.raises(WireError, match="expected step 1 with 3"):
        driver.scheduler.apply(spoil(driver.execute()))
    assert not driver.scheduler.engines
    driver.plans.clear()
    driver.open()
    driver.run()
    for i, handle in enumerate(handles):
        assert driver.outputs[handle].tokens == expected_tokens([3 + i], 12, 1000)


def test_an_answer_without_a_question_ends_the_session() -> None:
    driver = Driver()
    stray = m.StepResult(engine_id=driver.info.engine_id, session="session-0", seq=0, tokens=np.empty(0, np.int32))
    with pytest.raises(WireError, match="expected step none"):
        driver.scheduler.apply(stray)


def test_a_late_answer_of_an_ended_session_is_ignored() -> None:
    driver = Driver()
    handle = driver.submit([3], 5, ignore_eos=True)
    driver.pump()
    late = driver.execute()
    driver.plans.clear()
    driver.open()
    driver.scheduler.apply(late)
    driver.run()
    assert driver.outputs[handle].tokens == expected_tokens([3], 5, 1000)

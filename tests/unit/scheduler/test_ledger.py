"""What the scheduler tells each tokenizer every few seconds."""

from __future__ import annotations

import numpy as np

from shared import messages as m
from shared.ledgers import LEDGER_S, ROUNDS_AFTER_LAST
from shared.messages.generation import RUNNING
from tests.fakes.engine import engine_info
from tests.fakes.scheduler_driver import Driver


def told(driver: Driver) -> dict[str, dict[int, int]]:
    """One round: by tokenizer, the tokens of each of its requests."""
    driver.report(after_s=LEDGER_S)
    driver.ledgers.clear()
    driver.tick()
    return {to: dict(zip(b.handles.tolist(), b.totals.tolist(), strict=True)) for to, b in driver.ledgers}


def test_it_names_running_waiting_and_unrouted_requests_with_the_tokens_told_so_far() -> None:
    driver = Driver(engine_info(max_rows=1))
    runs = driver.submit([3], 50, ignore_eos=True)
    waits = driver.submit([4], 5)
    for _ in range(6):
        driver.step()
    assert told(driver) == {"tok": {runs: len(driver.outputs[runs].tokens), waits: 0}}
    driver.plans.clear()
    driver.scheduler.close(driver.session, "test")
    driver.ledgers.clear()
    driver.tick(after_s=LEDGER_S)
    assert driver.ledgers[0][1].handles.tolist() == [runs, waits]
    assert driver.ledgers[0][1].totals.tolist() == [len(driver.outputs[runs].tokens), 0]


def test_it_has_no_tokens_and_ends_nothing() -> None:
    driver = Driver()
    driver.submit([3], 50, ignore_eos=True)
    driver.step()
    told(driver)
    ((_, ledger),) = driver.ledgers
    assert (ledger.counts.tolist(), ledger.finish.tolist(), ledger.tokens.tolist()) == ([0], [RUNNING], [])


def test_each_tokenizer_hears_of_its_own_requests() -> None:
    driver = Driver()
    mine, other = driver.submit([3], 50, ignore_eos=True), driver.submit([4], 50, ignore_eos=True, tokenizer="other")
    driver.pump()
    assert told(driver) == {"tok": {mine: 0}, "other": {other: 0}}


def test_an_ended_request_is_in_no_ledger_and_ledgers_end_some_rounds_later() -> None:
    driver = Driver()
    driver.submit([3], 5, ignore_eos=True)
    driver.run()
    assert [told(driver) for _ in range(ROUNDS_AFTER_LAST)] == [{"tok": {}}] * ROUNDS_AFTER_LAST
    assert told(driver) == {}


def test_the_answer_to_a_request_tells_which_ledgers_it_is_not_in() -> None:
    driver = Driver()
    driver.submit([3], 50, ignore_eos=True)
    driver.pump()
    told(driver)
    told(driver)
    late = m.TokenizedRequest(
        rid="late", tokenizer_id="tok", handle=99, input_ids=np.array([3], np.int32),
        sampling=driver.req(1).sampling,
    )  # fmt: skip
    _, queued = driver.scheduler.submit(late)
    driver.outputs[99] = type(driver.outputs[1])()
    assert queued.ledger == driver.ledgers[0][1].ledger == 2
    assert 99 in told(driver)["tok"]
    assert driver.ledgers[0][1].ledger == 3


def test_a_tokenizer_that_was_only_silent_for_a_while_learns_that_its_requests_are_gone() -> None:
    driver = Driver()
    driver.submit([3], 50, ignore_eos=True)
    driver.pump()
    driver.scheduler.tokenizer_lost("tok")
    assert told(driver) == {"tok": {}}

"""Grammars that are slow to follow: their own requests wait for them, nobody else's step does."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from services.scheduler.aside import Aside
from services.scheduler.config import SchedulerConfig
from shared.messages.generation import RUNNING, STOPPED
from tests.fakes.engine import engine_info
from tests.fakes.grammar import Automaton, line
from tests.fakes.scheduler_driver import Driver


def test_work_is_done_in_order_in_one_thread_and_told_on_the_loop() -> None:
    aside, order, woken = Aside(), [], threading.Semaphore(0)
    aside.wake = woken.release
    for i in range(3):
        aside.start(lambda i=i: order.append((i, threading.get_ident())), lambda i=i: order.append((10 + i, 0)))  # type: ignore[misc]
    assert all(woken.acquire(timeout=10) for _ in range(3))
    assert [number for number, _ in order] == [0, 1, 2]
    assert len({thread for _, thread in order} - {threading.get_ident()}) == 1
    aside.finish()
    aside.finish()
    assert [number for number, _ in order] == [0, 1, 2, 10, 11, 12]
    aside.close()


def test_work_that_fails_is_logged_and_told_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    aside, told, woken = Aside(), [], threading.Semaphore(0)
    aside.wake = woken.release
    aside.start(lambda: 1 / 0, lambda: told.append(True))  # type: ignore[arg-type, return-value]
    assert woken.acquire(timeout=10)
    aside.finish()
    assert told == [True]
    assert "cannot be followed" in caplog.text
    aside.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_requests_go_on_while_another_s_grammar_is_followed(depth: int) -> None:
    driver = Driver(engine_info(mask_slots=40), SchedulerConfig(pipeline_depth=depth))
    endless = Automaton([{5: 1, 6: 1}, {5: 0, 6: 0}], frozenset(), slow=True)
    first = driver.submit([5, 6], 400, grammar=endless)
    for _ in range(30):
        driver.step()
    fresh = driver.submit([6, 6], 400, grammar=endless)
    while driver.req(fresh).row < 0:
        driver.answer()
        driver.pump()
    had = len(driver.outputs[first].tokens)
    assert had > 3
    driver.aside.held = True
    waiting = driver.submit([5, 9], 20, grammar=dataclasses.replace(line(7, 8), slow=True))
    others = [driver.submit([7, i], 25, ignore_eos=True) for i in range(3)]
    quick = driver.submit([8], 20, grammar=line(7, 8, 9))
    for _ in range(60):
        driver.pump()
        if not driver.plans:
            break
        driver.answer()
    assert all(len(driver.outputs[handle].tokens) == 25 for handle in others)
    assert driver.outputs[quick].finish == STOPPED
    assert driver.outputs[waiting].finish == RUNNING
    assert len(driver.outputs[first].tokens) <= had + 1
    assert len(driver.outputs[fresh].tokens) == 1
    assert driver.outputs[first].finish == driver.outputs[fresh].finish == RUNNING
    driver.aside.held = False
    driver.run()
    driver.check()
    assert driver.outputs[waiting].finish == STOPPED
    assert driver.outputs[waiting].tokens[:2] == [7, 8]

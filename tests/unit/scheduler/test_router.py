from __future__ import annotations

import dataclasses

import numpy as np

from services.scheduler import router
from services.scheduler.engine import Engine
from services.scheduler.request import Req
from shared import messages as m
from shared.sampling import NEUTRAL
from tests.fakes.engine import engine_info
from tests.fakes.scheduler_driver import Driver

PREFIX = list(range(3, 203))


def request(tokens: list[int], new: int = 1) -> Req:
    sampling = dataclasses.replace(NEUTRAL, max_new_tokens=new)
    ids = np.array(tokens, np.int32)
    msg = m.TokenizedRequest(rid="r", tokenizer_id="t", handle=1, input_ids=ids, sampling=sampling)
    return Req.from_message(msg, 0.0)


def warm_and_idle() -> tuple[Driver, Engine, Engine]:
    """A driver with two engines: one that has the prefix cached, one that has nothing."""
    driver = Driver()
    driver.submit(PREFIX, 1)
    driver.run()
    driver.open(engine_info(engine_id="cold-0-test"))
    return driver, driver.session, driver.scheduler.engines["cold-0-test"]


def test_the_engine_with_the_longest_cached_prefix_wins() -> None:
    _, warm, cold = warm_and_idle()
    assert router.choose([cold, warm], request([*PREFIX, 7])) is warm


def test_a_prefix_loses_against_enough_load() -> None:
    _, warm, cold = warm_and_idle()
    for _ in range(3):
        warm.push(request([9] * 300))
    assert router.choose([cold, warm], request([*PREFIX, 7])) is cold


def test_without_a_prefix_the_least_loaded_engine_wins() -> None:
    _, warm, cold = warm_and_idle()
    cold.push(request([9] * 10))
    assert router.choose([cold, warm], request([500, 501])) is warm


def test_what_is_cached_on_one_engine_is_not_taken_for_cached_on_another() -> None:
    _, warm, cold = warm_and_idle()
    req = request([*PREFIX, 7])
    assert [e.pool.match_len(req) for e in (warm, cold, warm, cold)] == [200, 0, 200, 0]


def test_only_ready_engines_that_can_hold_the_request_are_taken() -> None:
    _, warm, cold = warm_and_idle()
    assert router.choose([warm, cold], request([5] * 400, new=113)) is None  # context length 512
    warm.info = dataclasses.replace(warm.info, state="starting")
    assert router.choose([warm, cold], request([*PREFIX, 7])) is cold
    assert router.choose([], request([5])) is None

from __future__ import annotations

import numpy as np

from services.scheduler.outbox import Outbox
from services.scheduler.token_logprobs import TokenLogprobs
from shared.errors import DeadlineExceeded
from shared.messages.generation import ABORTED, RUNNING
from tests.fakes.scheduler_driver import Driver


def test_one_step_is_one_batch_for_each_tokenizer_and_no_token_goes_astray() -> None:
    outbox = Outbox("s")
    a, b = outbox.owner("a"), outbox.owner("b")
    assert (outbox.owner("a"), outbox.owner("b")) == (a, b)
    outbox.tokens(
        np.array([a, b, a], np.int32), np.array([1, 1, 2], np.uint32), np.array([1, 1, 2], np.int32),
        np.array([5, 6, 7], np.int32), np.array([50, 60, 70, 71], np.int32), np.zeros(3, np.uint8),
        np.array([-1, 4, -1], np.int32),
        TokenLogprobs(
            np.array([-0.5, -0.6, -0.7, -0.8], np.float32), np.array([[1], [2], [3], [4]], np.int32),
            np.zeros((4, 1), np.float32),
        ),
    )  # fmt: skip
    (to_a, for_a), (to_b, for_b) = outbox.take()
    assert (to_a, for_a.handles.tolist(), for_a.tokens.tolist()) == ("a", [1, 2], [50, 70, 71])
    assert (to_b, for_b.handles.tolist(), for_b.tokens.tolist()) == ("b", [1], [60])
    assert (for_a.totals.tolist(), for_a.cached_tokens.tolist()) == ([5, 7], [-1, -1])
    assert (for_b.totals.tolist(), for_b.cached_tokens.tolist()) == ([6], [4])
    assert for_a.logprobs is not None
    assert for_a.top_ids is not None
    assert for_a.logprobs.tolist() == [np.float32(value) for value in (-0.5, -0.7, -0.8)]
    assert for_a.top_ids.tolist() == [[1], [3], [4]]
    assert for_a.counts.tolist() == [1, 2]
    assert outbox.take() == []


def test_an_end_without_a_token_tells_the_total() -> None:
    driver = Driver()
    req = driver.req(driver.submit([3], 5))
    outbox = Outbox("s")
    outbox.end(req, ABORTED, total=3)
    ((to, batch),) = outbox.take()
    assert (to, batch.finish.tolist(), batch.totals.tolist(), batch.counts.tolist()) == ("tok", [ABORTED], [3], [0])


def test_a_failure_carries_its_error() -> None:
    driver = Driver()
    req = driver.req(driver.submit([3], 5))
    outbox = Outbox("s")
    outbox.failed(req, DeadlineExceeded("too late", param="timeout"))
    batch = outbox.take()[0][1]
    error = batch.errors[0].error
    assert (error.code, error.message, error.param) == ("deadline_exceeded", "too late", "timeout")
    assert batch.errors[0].handle == req.handle


def test_what_happened_first_is_told_first() -> None:
    driver = Driver()
    req = driver.req(driver.submit([3], 5))
    outbox = Outbox("s")
    outbox.prompt_logprobs(req, 7, 0, np.zeros(2, np.float32), None, None)
    outbox.end(req, ABORTED, total=0)
    (_, first), (_, second) = outbox.take()
    assert (first.finish.tolist(), first.cached_tokens.tolist()) == ([RUNNING], [7])
    assert first.prompt_counts is not None
    assert first.prompt_counts.tolist() == [2]
    assert second.finish.tolist() == [ABORTED]

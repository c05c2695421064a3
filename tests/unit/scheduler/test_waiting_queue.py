from __future__ import annotations

import numpy as np

from services.scheduler.config import SchedulePolicy
from services.scheduler.request import Req
from services.scheduler.waiting_queue import LPM_WINDOW, WaitingQueue
from shared.sampling import NEUTRAL


def waiting(rid: str, arrived_s: float = 0.0, *, priority: int = 0, tokens: int = 4) -> Req:
    return Req(
        rid=rid, tokenizer_id="tok", handle=0, ids=np.zeros(tokens, np.int32), prompt_len=tokens, sampling=NEUTRAL,
        max_new_tokens=1, stop_ids=frozenset(), return_logprob=False, top_logprobs_num=0, logprob_start=-1,
        priority=priority, cache_salt="", arrived_s=arrived_s, deadline_s=float("inf"), queued_since_s=arrived_s,
    )  # fmt: skip


def order(queue: WaitingQueue, cached: dict[str, int] | None = None, now_s: float = 0.0) -> str:
    """The rids in the order in which they are tried."""
    return "".join(r.rid for r in queue.ordered(now_s, lambda r: (cached or {}).get(r.rid, 0)))


def queue_of(policy: SchedulePolicy, *reqs: Req, limit_s: float = 5.0) -> WaitingQueue:
    queue = WaitingQueue(policy, limit_s)
    for req in reqs:
        queue.push(req)
    return queue


def test_fcfs_follows_arrival_whatever_is_cached_or_wanted() -> None:
    queue = queue_of("fcfs", waiting("a", 1), waiting("b", 2, priority=9), waiting("c", 3))
    assert order(queue, {"c": 100}) == "abc"


def test_lpm_puts_the_longest_cached_prefix_first_and_equals_by_arrival() -> None:
    queue = queue_of("lpm", *(waiting(rid) for rid in "abcd"))
    assert order(queue, {"b": 10, "d": 30, "c": 10}) == "dbca"


def test_priority_puts_the_higher_first_and_equals_by_arrival() -> None:
    queue = queue_of("priority", waiting("a", 1), waiting("b", 2, priority=5), waiting("c", 3, priority=5))
    assert order(queue, now_s=4) == "bca"


def test_who_waited_too_long_goes_first_whatever_the_policy() -> None:
    for policy in ("lpm", "priority"):
        queue = queue_of(
            policy, waiting("a", 0), waiting("b", 1), waiting("c", 8, priority=1), waiting("d", 9, priority=2)
        )  # fmt: skip
        assert order(queue, {"c": 10, "d": 20}, now_s=10) == "abdc"


def test_lpm_compares_no_more_than_a_window_of_the_queue() -> None:
    queue = queue_of("lpm", *(waiting(f"{i}") for i in range(LPM_WINDOW + 50)))
    measured: list[str] = []

    def match_len(req: Req) -> int:
        measured.append(req.rid)
        return int(req.rid)

    out = [r.rid for r in queue.ordered(0.0, match_len)]
    assert len(measured) == LPM_WINDOW
    assert out[0] == str(LPM_WINDOW - 1)
    assert out[LPM_WINDOW:] == [str(i) for i in range(LPM_WINDOW, LPM_WINDOW + 50)]


def test_requests_that_ran_before_come_first_oldest_first() -> None:
    queue = queue_of("lpm", waiting("a", 1), waiting("b", 2))
    queue.push_first(waiting("y", 6))
    queue.push_first(waiting("x", 5))
    assert order(queue, {"b": 10}) == "xyba"
    assert [r.rid for r in queue] == ["x", "y", "a", "b"]


def test_the_tokens_of_all_waiting_requests_are_known_at_any_time() -> None:
    a, b, stranger = waiting("a", tokens=10), waiting("b", tokens=5), waiting("c", tokens=3)
    queue = queue_of("fcfs", a)
    queue.push_first(b)
    assert queue.tokens == 15
    queue.remove(a)
    queue.remove(a)
    queue.remove(stranger)
    assert queue.tokens == 5
    assert queue.take_all() == [b]
    assert queue.tokens == len(queue) == 0

"""The table of running generations and the mailbox of one HTTP request, without HTTP or a bus."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.gateway.metrics import GatewayMetrics
from services.gateway.streams import Mailbox, Stream, StreamTable
from shared import messages as m
from shared.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable


class Clock:
    """Time that the test sets."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def table(limit: int = 8, clock: Clock | None = None) -> tuple[StreamTable, CollectorRegistry]:
    registry = CollectorRegistry()
    return StreamTable(limit, GatewayMetrics(registry), clock or Clock()), registry


def stream(rid: str = "a", mailbox: Mailbox | None = None, index: int = 0) -> Stream:
    return Stream(m.GenerateRequest(rid, "reply"), index, mailbox or Mailbox(100, lambda: None), 100.0)


def delta(rid: str, seq: int, finish: str | None = None, **fields: object) -> m.TextDelta:
    return m.TextDelta(rid, seq, token_ids=[seq], completion_tokens=seq + 1, finish_reason=finish, **fields)


async def test_all_deltas_at_hand_come_in_one_take_in_order() -> None:
    streams, _ = table()
    box = Mailbox(100, lambda: None)
    streams.open([stream("a", box, 0), stream("b", box, 1)])
    streams.dispatch(m.TextDeltas([delta("a", 0), delta("b", 0), delta("nobody", 0)]))
    streams.dispatch(m.TextDeltas([delta("a", 1)]))
    assert [(i, d.seq) for i, d in await box.take()] == [(0, 0), (1, 0), (0, 1)]


async def test_an_entry_has_all_that_a_resubmission_needs() -> None:
    streams, _ = table()
    one = stream()
    streams.open([one])
    streams.accepted(one, m.Accepted("a", "t-1", "s-1", 5))
    streams.dispatch(m.TextDeltas([delta("a", 0, prompt=m.PromptInfo(5, 3))]))
    streams.dispatch(m.TextDeltas([delta("a", 1), delta("a", 2)]))
    assert (one.request.rid, one.token_ids, one.tokenizer_id, one.scheduler_id) == ("a", [0, 1, 2], "t-1", "s-1")
    assert (one.prompt_tokens, one.cached_tokens, one.completion_tokens) == (5, 3, 3)


async def test_a_gap_fails_the_reader_after_what_came_before_it() -> None:
    streams, _ = table()
    one = stream()
    streams.open([one])
    streams.dispatch(m.TextDeltas([delta("a", 0), delta("a", 2)]))
    assert len(await one.mailbox.take()) == 1
    with pytest.raises(Unavailable, match="delta 1 missing"):
        await one.mailbox.take()
    assert len(streams) == 0
    assert not one.ended


async def test_only_streams_of_a_lost_instance_fail() -> None:
    streams, _ = table()
    mine, other, waiting = stream("a"), stream("b"), stream("c")
    streams.open([mine, other, waiting])
    streams.accepted(mine, m.Accepted("a", "t-1", "s-1", 5))
    streams.accepted(other, m.Accepted("b", "t-2", "s-2", 5))
    streams.lose("s-1", "killed")
    with pytest.raises(Unavailable, match="s-1"):
        await mine.mailbox.take()
    assert len(streams) == 2
    streams.lose("t-2", "killed")
    assert len(streams) == 1


async def test_limits_and_duplicates_are_refused_and_leave_nothing_behind() -> None:
    streams, _ = table(limit=3)
    streams.open([stream("a"), stream("b")])
    with pytest.raises(InvalidRequest, match="already running"):
        streams.open([stream("a")])
    with pytest.raises(Overloaded):
        streams.open([stream("c"), stream("d")])
    with pytest.raises(InvalidRequest, match="split"):
        streams.open([stream(str(i)) for i in range(4)])
    assert len(streams) == 2


async def test_closing_an_old_stream_leaves_a_new_one_of_the_same_rid_alone() -> None:
    streams, _ = table()
    old, new = stream("a"), stream("a")
    streams.open([old])
    streams.dispatch(m.TextDeltas([delta("a", 0, "stop")]))
    streams.open([new])
    streams.close(old)
    assert len(streams) == 1


async def test_a_full_mailbox_drops_everything_and_calls_for_help_once() -> None:
    calls: list[int] = []
    box = Mailbox(2, lambda: calls.append(1))
    for seq in range(5):
        box.put(0, delta("a", seq))
    with pytest.raises(Overloaded, match="too slowly"):
        await box.take()
    assert calls == [1]


async def test_a_waiting_reader_wakes_up_for_a_fault() -> None:
    box = Mailbox(2, lambda: None)
    reader = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    box.fail(DeadlineExceeded("late"))
    with pytest.raises(DeadlineExceeded):
        await reader


async def test_latencies_are_those_between_deltas() -> None:
    clock = Clock()
    streams, registry = table(clock=clock)
    streams.open([stream()])
    for seq, now_s in enumerate((100.5, 100.6, 100.8)):
        clock.now_s = now_s
        streams.dispatch(m.TextDeltas([delta("a", seq, "stop" if seq == 2 else None)]))

    def total(name: str) -> float | None:
        return registry.get_sample_value(f"rhizome_{name}_seconds_sum")

    assert total("time_to_first_token") == pytest.approx(0.5)
    assert total("inter_token_latency") == pytest.approx(0.3)
    assert total("e2e_request_latency") == pytest.approx(0.8)

"""What a tokenizer learns from the scheduler's ledgers, and what it tells the gateways in its own. No bus."""

from __future__ import annotations

import numpy as np
import pytest

from services.tokenizer.detokenizer import Detokenizers
from services.tokenizer.prompt import Prompt
from services.tokenizer.stream import Stream
from services.tokenizer.streams import Outcome, StreamTable
from shared import messages as m
from shared import wire
from shared.messages.generation import LENGTH, RUNNING
from tests.unit.tokenizer import tiny

REPLY = "rz.v1.default.gateway.g-1.deltas"


@pytest.fixture
def table() -> StreamTable:
    return StreamTable(Detokenizers(tiny.vocabulary(tiny.byte_level())), max_streams=8)


def queued(table: StreamTable, rid: str = "r", *, after: int = 0, scheduler: str = "s-1", reply: str = REPLY) -> Stream:
    """A stream whose request a scheduler took when its latest ledger was number `after`."""
    stream = table.open(m.GenerateRequest(rid, reply, text="p"))
    stream.begin(Prompt([1, 2, 3], "p"), -1)
    stream.scheduler_id, stream.queued_after = scheduler, after
    return stream


def batch(stream: Stream, ids: list[int], total: int, finish: int = RUNNING) -> m.TokenBatch:
    return m.TokenBatch(
        "s-1", np.array([stream.handle], np.uint32), np.array([len(ids)], np.int32), np.array([total], np.int32),
        np.array(ids, np.int32), np.array([finish], np.uint8), np.array([-1], np.int32),
    )  # fmt: skip


def ledger(number: int, *entries: tuple[int, int], scheduler: str = "s-1") -> m.TokenBatch:
    """Entries of (handle, tokens told so far)."""
    n = len(entries)
    return m.TokenBatch(
        scheduler, np.array([e[0] for e in entries], np.uint32), np.zeros(n, np.int32),
        np.array([e[1] for e in entries], np.int32), np.empty(0, np.int32), np.full(n, RUNNING, np.uint8),
        np.full(n, -1, np.int32), ledger=number,
    )  # fmt: skip


def nothing(out: Outcome) -> bool:
    return not out.deltas and not out.aborts and not out.aborts_again


def error_of(out: Outcome) -> m.ErrorInfo:
    ((delta,),) = out.deltas.values()
    assert delta.finish_reason == "error"
    assert delta.error is not None
    return delta.error


def test_a_stream_whose_last_tokens_were_lost_ends_with_an_error(table: StreamTable) -> None:
    stream = queued(table)
    table.apply(batch(stream, [50, 51], 2))
    error = error_of(table.apply(ledger(1)))
    assert error.code == "unavailable"
    assert "lost" in error.message
    assert len(table) == 0


def test_a_stream_that_misses_tokens_ends_with_an_error_and_its_row_is_freed(table: StreamTable) -> None:
    stream = queued(table)
    table.apply(batch(stream, [50, 51], 2))
    out = table.apply(ledger(1, (stream.handle, 3)))
    assert "2 + 0 arrived of 3" in error_of(out).message
    assert out.aborts == {"s-1": [stream.handle]}


def test_a_slow_but_living_stream_is_never_ended(table: StreamTable) -> None:
    waits, slow = queued(table, "waits"), queued(table, "slow")
    table.apply(batch(slow, [50], 1))
    for number in range(1, 200):
        assert nothing(table.apply(ledger(number, (waits.handle, 0), (slow.handle, 1))))
    (delta,) = table.apply(batch(slow, [51], 2, LENGTH)).deltas[REPLY]
    assert delta.finish_reason == "length"


def test_a_ledger_made_before_the_request_was_queued_says_nothing_of_it(table: StreamTable) -> None:
    stream = queued(table, after=7)
    for number in (5, 6, 7):  # they were behind when the answer came
        assert nothing(table.apply(ledger(number)))
    assert nothing(table.apply(ledger(8, (stream.handle, 0))))


def test_a_request_that_no_scheduler_has_answered_for_is_left_alone(table: StreamTable) -> None:
    table.open(m.GenerateRequest("r", REPLY, text="p"))
    assert nothing(table.apply(ledger(9)))
    assert len(table) == 1


def test_a_ledger_speaks_for_its_own_scheduler_only(table: StreamTable) -> None:
    queued(table, scheduler="s-2")
    assert nothing(table.apply(ledger(9)))


def test_a_request_that_is_not_wanted_any_more_is_aborted_again(table: StreamTable) -> None:
    stream = queued(table)
    table.close(stream)  # a stop string ended it, and the word was lost
    out = table.apply(ledger(1, (stream.handle, 40)))
    assert out.aborts == {"s-1": [stream.handle]}
    assert not out.deltas


def test_an_abort_that_had_no_effect_is_asked_for_again(table: StreamTable) -> None:
    stream = queued(table)
    assert table.ask_abort(["r"]) == {"s-1": [stream.handle]}
    out = table.apply(ledger(1, (stream.handle, 0)))
    assert out.aborts_again == {"s-1": [stream.handle]}
    assert len(table) == 1


def test_a_gateways_ledger_has_its_streams_and_the_number_of_their_next_delta(table: StreamTable) -> None:
    fresh, other = queued(table, "fresh"), queued(table, "other", reply="somebody.elses")
    speaks = queued(table, "speaks")
    table.apply(batch(speaks, [50], 1))
    table.apply(batch(speaks, [51], 2))
    ended = queued(table, "ended")
    table.apply(batch(ended, [50], 1, LENGTH))
    told = table.ledgers("t-1", 4, [REPLY, "nobody"])
    assert told == {
        REPLY: m.DeltaLedger("t-1", 4, ["fresh", "speaks"], [0, 2]), "nobody": m.DeltaLedger("t-1", 4, [], []),
    }  # fmt: skip
    assert (fresh.next_seq, other.next_seq) == (0, 0)


def test_ledgers_of_many_requests_fit_their_messages() -> None:
    rids = [f"{i:0128d}" for i in range(4096)]
    assert wire.encode(m.TextDeltas([], m.DeltaLedger("t-1", 1, rids, [0] * len(rids))))
    assert wire.encode(ledger(1, *((i, 100_000) for i in range(100_000))))

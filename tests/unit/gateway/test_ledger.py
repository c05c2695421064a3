"""A gateway compares what it waits for with what each tokenizer says it has."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.streams import Stream, StreamTable
from shared import messages as m
from shared.errors import Unavailable
from tests.unit.gateway.deployment import MODEL, Deployment, Script, deployed, eventually
from tests.unit.gateway.test_streams import delta, stream, table

CHAT = "/v1/chat/completions"
HI = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def accepted(streams: StreamTable, rid: str = "a", *, after: int = 0, tokenizer: str = "t-1") -> Stream:
    """A generation that a tokenizer took when its latest ledger was number `after`."""
    one = stream(rid)
    streams.open([one])
    streams.accepted(one, m.Accepted(rid, tokenizer, "s-1", 5, ledger=after))
    return one


def ledger(number: int, *, tokenizer: str = "t-1", **seqs: int) -> m.DeltaLedger:
    return m.DeltaLedger(tokenizer, number, [*seqs], [*seqs.values()])


async def test_a_generation_that_its_tokenizer_has_no_more_fails() -> None:
    streams, _ = table()
    one = accepted(streams)
    streams.dispatch(m.TextDeltas([delta("a", 0)]))
    assert streams.reconcile(ledger(1)) == []
    assert len(await one.mailbox.take()) == 1
    with pytest.raises(Unavailable, match="end of the answer was lost"):
        await one.mailbox.take()
    assert not one.ended  # so its handler aborts it


async def test_a_generation_that_misses_a_delta_fails() -> None:
    streams, _ = table()
    one = accepted(streams)
    streams.reconcile(ledger(1, a=1))
    with pytest.raises(Unavailable, match="delta 0 missing"):
        await one.mailbox.take()


async def test_a_slow_but_living_stream_is_never_ended() -> None:
    streams, _ = table()
    accepted(streams, "waits")
    accepted(streams, "slow")
    streams.dispatch(m.TextDeltas([delta("slow", 0)]))
    for number in range(1, 200):
        assert streams.reconcile(ledger(number, waits=0, slow=1)) == []
    assert len(streams) == 2


async def test_a_ledger_made_before_the_generation_was_accepted_says_nothing_of_it() -> None:
    streams, _ = table()
    accepted(streams, after=7)
    for number in (6, 7):
        streams.reconcile(ledger(number))
    assert len(streams) == 1
    streams.reconcile(ledger(8))
    assert len(streams) == 0


async def test_a_generation_that_is_not_accepted_yet_or_is_another_tokenizers_is_left_alone() -> None:
    streams, _ = table()
    streams.open([stream("new")])
    accepted(streams, "other", tokenizer="t-2")
    assert streams.reconcile(ledger(9)) == []
    assert streams.reconcile(ledger(9, new=3)) == []
    assert len(streams) == 2


async def test_what_nobody_waits_for_is_unwanted() -> None:
    streams, _ = table()
    accepted(streams, "a")
    accepted(streams, "moved", tokenizer="t-2")
    assert streams.reconcile(ledger(1, a=0, gone=5, moved=0)) == ["gone", "moved"]
    assert len(streams) == 2


async def say(gw: Deployment, number: int, **seqs: int) -> None:
    told = m.DeltaLedger(gw.tokenizer.actor.id, number, [*seqs], [*seqs.values()])
    await gw.tokenizer.actor.send(gw.service.reply, m.TextDeltas([], told))


async def test_a_lost_answer_is_a_503_and_the_generation_is_aborted() -> None:
    async with deployed() as gw:
        gw.tokenizer.script = lambda _: Script(silent=True)
        asking = asyncio.ensure_future(gw.post(CHAT, HI))
        number = 0
        while not asking.done():  # those that come before the answer to the request say nothing of it
            number += 1
            await say(gw, number)
            await asyncio.sleep(0)
        status, body = await asking
        assert (status, body["error"]["code"]) == (503, "unavailable")
        await gw.tokenizer.abort_seen.wait()
        assert gw.tokenizer.aborted == [gw.tokenizer.requests[0].rid]
        assert len(gw.service.table) == 0


async def test_a_stream_whose_end_was_lost_ends_with_an_error_event() -> None:
    async with deployed() as gw:
        gw.tokenizer.script = lambda _: Script(gate=asyncio.Event())
        async with gw.session.post(gw.url + CHAT, json={**HI, "stream": True}) as response:
            first = await response.content.readany()
            await say(gw, 1)
            rest = await response.content.read()
        assert b'"code":"unavailable"' in first + rest
        assert b"[DONE]" not in first + rest


async def test_what_a_tokenizer_still_has_and_nobody_wants_is_aborted_in_messages_that_fit() -> None:
    async with deployed() as gw:
        rids = [f"{i:_>128}" for i in range(1000)]
        await say(gw, 1, **dict.fromkeys(rids, 0))
        await eventually(lambda: len(gw.tokenizer.aborted) == len(rids))
        assert gw.tokenizer.aborted == rids

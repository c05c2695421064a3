"""Life of a service on the bus, in memory and on a real server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from shared import log as log_module
from shared import messages as m
from shared import wire
from shared.actor import Actor, decode_reply, default_name
from shared.bus import Bus, LocalBus, NatsBus
from shared.config import CommonConfig
from shared.errors import ConfigError, InvalidRequest, Overloaded, RhizomeError, TooLarge, Unavailable, WireError
from shared.peers import Peers

LOG = log_module.setup("test", "error")


def make_actor(bus: Bus, service: str = "tokenizer", **config: Any) -> Actor:
    return Actor(service, CommonConfig(**config), bus, LOG)


@pytest.fixture
async def actor(bus: Bus) -> Actor:
    return make_actor(bus)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is awaited has no event of its own
            await asyncio.sleep(0.001)


def errors(actor: Actor, subject: str, code: str) -> float:
    return actor.registry.get_sample_value("rhizome_handler_errors_total", {"subject": subject, "code": code}) or 0.0


async def test_a_bad_message_is_counted_and_the_next_one_is_handled(actor: Actor) -> None:
    seen: list[str] = []
    subject = actor.subjects.tokenizer_abort("t1")
    await actor.on(subject, m.Abort, lambda msg: seen.extend(msg.rids))
    for payload in (b"", b"\xff", b"[]", b'{"rids":[1]}', b"RZ1\0\0\0\0\0"):
        await actor.bus.publish(subject, payload)
    await actor.send(subject, m.Abort(["r1"]))
    await until(lambda: seen == ["r1"])
    assert errors(actor, "tokenizer.t1.abort", "bad_message") == 5


async def test_a_handler_that_fails_costs_one_message(actor: Actor) -> None:
    seen: list[str] = []
    subject = actor.subjects.tokenizer_abort("t1")

    async def handle(msg: m.Abort) -> None:
        if msg.rids == ["bug"]:
            raise ZeroDivisionError
        if msg.rids == ["full"]:
            raise Overloaded("full")
        seen.extend(msg.rids)

    await actor.on(subject, m.Abort, handle)
    for rid in ("bug", "full", "good"):
        await actor.send(subject, m.Abort([rid]))
    await until(lambda: seen == ["good"])
    assert errors(actor, "tokenizer.t1.abort", "internal_error") == 1
    assert errors(actor, "tokenizer.t1.abort", "overloaded") == 1


async def test_an_asynchronous_handler_is_awaited_before_the_next_message(actor: Actor) -> None:
    seen: list[str] = []
    subject = actor.subjects.tokenizer_abort("t1")

    async def handle(msg: m.Abort) -> None:
        for _ in range(3 if msg.rids == ["slow"] else 0):
            await asyncio.sleep(0)
        seen.extend(msg.rids)

    await actor.on(subject, m.Abort, handle)
    await actor.send(subject, m.Abort(["slow"]))
    await actor.send(subject, m.Abort(["fast"]))
    await until(lambda: len(seen) == 2)
    assert seen == ["slow", "fast"]


async def serve_text(actor: Actor, handler: Callable[[m.Detokenize], Any]) -> str:
    async def answer(msg: m.Detokenize) -> m.Text:
        return m.Text(str(handler(msg)))

    await actor.serve(actor.subjects.detokenize, m.Detokenize, answer, queue="tokenizer")
    await actor.bus.flush()
    return actor.subjects.detokenize


async def test_an_answer_reaches_the_one_who_asked(actor: Actor) -> None:
    subject = await serve_text(actor, lambda msg: sum(msg.token_ids))
    answers = await asyncio.gather(*(actor.ask(subject, m.Detokenize([i, 1]), m.Text) for i in range(20)))
    assert [a.text for a in answers] == [str(i + 1) for i in range(20)]


async def test_an_error_travels_to_the_one_who_asked(actor: Actor) -> None:
    def refuse(msg: m.Detokenize) -> None:
        raise InvalidRequest("token id 9 is unknown", param="token_ids")

    subject = await serve_text(actor, refuse)
    with pytest.raises(InvalidRequest, match="token id 9 is unknown") as caught:
        await actor.ask(subject, m.Detokenize([9]), m.Text)
    assert caught.value.param == "token_ids"


async def test_a_bug_is_answered_without_its_details(actor: Actor) -> None:
    subject = await serve_text(actor, lambda msg: {"known": 1}["secret"])
    with pytest.raises(RhizomeError) as caught:
        await actor.ask(subject, m.Detokenize([]), m.Text)
    assert caught.value.code == "internal_error"
    assert "secret" not in caught.value.message


async def test_a_bad_request_message_is_answered(actor: Actor) -> None:
    subject = await serve_text(actor, lambda msg: "")
    with pytest.raises(WireError, match="token_ids"):
        decode_reply(m.Text, await actor.bus.request(subject, b'{"token_ids":"x"}', 10))


async def test_an_error_of_any_length_is_answered(actor: Actor) -> None:
    def refuse(msg: m.Detokenize) -> None:
        raise InvalidRequest("é" * 100_000, param="y" * 100_000)

    subject = await serve_text(actor, refuse)
    with pytest.raises(InvalidRequest, match="ééé"):
        await actor.ask(subject, m.Detokenize([]), m.Text, timeout_s=10)


async def test_an_answer_over_its_limit_becomes_an_error(actor: Actor) -> None:
    subject = await serve_text(actor, lambda msg: "x" * (wire.max_bytes(m.Text) + 1))
    with pytest.raises(TooLarge):
        await actor.ask(subject, m.Detokenize([]), m.Text)


async def test_a_slow_request_does_not_hold_up_the_next(actor: Actor) -> None:
    release = asyncio.Event()

    async def answer(msg: m.Detokenize) -> m.Text:
        if msg.token_ids == [0]:
            await release.wait()
        return m.Text(str(msg.token_ids[0]))

    await actor.serve(actor.subjects.detokenize, m.Detokenize, answer)
    await actor.bus.flush()
    slow = asyncio.ensure_future(actor.ask(actor.subjects.detokenize, m.Detokenize([0]), m.Text))
    assert (await actor.ask(actor.subjects.detokenize, m.Detokenize([1]), m.Text)).text == "1"
    assert not slow.done()
    release.set()
    assert (await slow).text == "0"


async def test_a_request_without_a_reply_subject_is_still_handled(actor: Actor) -> None:
    seen: list[int] = []
    subject = await serve_text(actor, lambda msg: seen.extend(msg.token_ids))
    await actor.send(subject, m.Detokenize([5]))
    await until(lambda: seen == [5])


async def test_asking_an_absent_service_is_unavailable(actor: Actor) -> None:
    with pytest.raises(Unavailable):
        await actor.ask(actor.subjects.tokenize, m.Tokenize(text="x"), m.Tokens)


async def test_a_started_actor_beats_and_a_stopped_one_says_goodbye(nats_url: str) -> None:
    watcher = make_actor(await NatsBus.connect(nats_url, "watcher"), "gateway", deployment="life")
    lost: list[tuple[str, str]] = []
    peers = Peers(lambda beat, reason: lost.append((beat.id, reason)))
    await peers.attach(watcher)
    await watcher.bus.flush()
    actor = make_actor(await NatsBus.connect(nats_url, "actor"), deployment="life", name="tokenizer-7")
    actor.facts = m.ServiceFacts(model="tiny", vocab_size=10)
    await actor.start()
    await until(lambda: bool(peers.of("tokenizer", "starting")))
    await actor.set_state("ready")
    await until(lambda: bool(peers.of("tokenizer", "ready")))
    (beat,) = peers.of("tokenizer")
    assert (beat.name, beat.id, beat.pid, beat.facts) == ("tokenizer-7", actor.id, os.getpid(), actor.facts)
    await actor.stop("done")
    await until(lambda: bool(lost))
    assert lost == [(actor.id, "done")]
    assert peers.of("tokenizer", None) == []
    await watcher.stop("done")


async def test_every_start_is_a_new_instance_of_the_same_name() -> None:
    first, second = make_actor(LocalBus(), name="t"), make_actor(LocalBus(), name="t")
    assert first.name == second.name == "t"
    assert first.id != second.id


def test_an_instance_without_a_name_gets_one_that_no_replica_on_another_host_or_in_another_process_has() -> None:
    name = default_name("tokenizer")
    assert name.startswith("tokenizer-")
    assert name.endswith(f"-{os.getpid()}")
    assert CommonConfig(name=name).name == name
    assert default_name("scheduler") == "scheduler-0"


@pytest.mark.parametrize("name", ["a.b", "a b", "x" * 65, "*"])
def test_a_name_that_is_no_part_of_a_subject_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        CommonConfig(name=name)


async def test_a_scrape_collects_the_metrics_of_every_service(bus: Bus) -> None:
    actors = [make_actor(bus, "tokenizer"), make_actor(bus, "scheduler")]
    for actor in actors:
        await actor.start()
    subject = actors[0].subjects.metrics
    answers = await bus.gather(subject, wire.encode(m.Empty()), most=2, timeout_s=10)
    texts = {t.service: t.text for t in (wire.decode(m.MetricsText, a) for a in answers)}
    assert set(texts) == {"tokenizer", "scheduler"}
    assert all("rhizome_handler_errors" in text for text in texts.values())


async def test_a_stopped_actor_handles_nothing_more() -> None:
    bus, seen = LocalBus(), []
    actor = make_actor(bus)
    await actor.on("x", m.Abort, lambda msg: seen.append(msg))
    task = actor.spawn(asyncio.Event().wait())
    await actor.stop("done")
    await bus.publish("x", wire.encode(m.Abort(["r"])))
    await asyncio.wait([task])
    assert task.cancelled()
    assert seen == []


async def test_a_failing_task_is_logged_and_harms_nobody(actor: Actor, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    task = actor.spawn(fail())
    await asyncio.wait([task])
    await until(lambda: "task failed" in caplog.text)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_then_stops(sig: signal.Signals) -> None:
    actor = make_actor(LocalBus())
    order: list[str] = []

    async def drain() -> None:
        order.append(actor.state)

    async def goodbye(data: bytes, _: str) -> None:
        order.append(wire.decode(m.Goodbye, data).reason)

    await actor.bus.subscribe(actor.subjects.goodbye, goodbye)
    running = asyncio.ensure_future(actor.run(drain))
    await asyncio.sleep(0)
    os.kill(os.getpid(), sig)
    async with asyncio.timeout(10):
        await running
    assert order[0] == "draining"


async def test_a_drain_that_hangs_ends_at_its_bound() -> None:
    actor = make_actor(LocalBus(), drain_timeout_s=0.01)
    running = asyncio.ensure_future(actor.run(asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await running

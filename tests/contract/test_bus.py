"""What every bus does, in memory and on a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from rhizome import nats_server
from rhizome.nats_server import EmbeddedNats
from shared.bus import Bus, LocalBus, NatsBus
from shared.errors import ConfigError, NotFound, Overloaded, TooLarge, Unavailable
from shared.wire import MAX_PAYLOAD_BYTES


class Inbox:
    """Collects what a subscription receives and waits for a number of messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, str]] = []
        self._grew = asyncio.Event()

    async def __call__(self, data: bytes, reply: str) -> None:
        self.messages.append((data, reply))
        self._grew.set()

    @property
    def payloads(self) -> list[bytes]:
        return [data for data, _ in self.messages]

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.messages) < count:
                self._grew.clear()
                await self._grew.wait()


async def settle(bus: Bus) -> None:
    """Return when everything published so far on this bus was handled."""
    mark = Inbox()
    stop = await bus.subscribe("mark.settled", mark)
    await bus.publish("mark.settled", b"")
    await mark.wait_for(1)
    await stop()


async def test_messages_arrive_in_the_order_sent(bus: Bus) -> None:
    inbox = Inbox()
    await bus.subscribe("t.order", inbox)
    for i in range(2000):
        await bus.publish("t.order", str(i).encode())
    await inbox.wait_for(2000)
    assert inbox.payloads == [str(i).encode() for i in range(2000)]


async def test_handlers_of_one_subscription_do_not_overlap(bus: Bus) -> None:
    busy, overlaps, inbox = False, 0, Inbox()

    async def handler(data: bytes, reply: str) -> None:
        nonlocal busy, overlaps
        overlaps += busy
        busy = True
        for _ in range(5):
            await asyncio.sleep(0)
        busy = False
        await inbox(data, reply)

    await bus.subscribe("t.serial", handler)
    for i in range(50):
        await bus.publish("t.serial", str(i).encode())
    await inbox.wait_for(50)
    assert overlaps == 0
    assert inbox.payloads == [str(i).encode() for i in range(50)]


async def test_every_plain_subscriber_gets_every_message(bus: Bus) -> None:
    inboxes = [Inbox(), Inbox(), Inbox()]
    for inbox in inboxes:
        await bus.subscribe("t.fan", inbox)
    await bus.publish("t.fan", b"x")
    for inbox in inboxes:
        await inbox.wait_for(1)


async def test_one_member_of_a_queue_group_gets_each_message(bus: Bus) -> None:
    members, outsider = [Inbox(), Inbox(), Inbox()], Inbox()
    for member in members:
        await bus.subscribe("t.queue", member, queue="g")
    await bus.subscribe("t.queue", outsider)
    for i in range(300):
        await bus.publish("t.queue", str(i).encode())
    await outsider.wait_for(300)
    await settle(bus)
    taken = sorted(int(p) for member in members for p in member.payloads)
    assert taken == list(range(300))
    assert all(member.payloads for member in members)


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        ("t.a", "t.a", True),
        ("t.a", "t.a.b", False),
        ("t.a.b", "t.a", False),
        ("t.*", "t.a", True),
        ("t.*", "t.a.b", False),
        ("t.*.b", "t.a.b", True),
        ("t.>", "t.a.b", True),
        ("t.>", "t", False),
        ("t.a", "t.A", False),
    ],
)
async def test_wildcards_match_as_in_nats(bus: Bus, pattern: str, subject: str, matches: bool) -> None:
    inbox = Inbox()
    await bus.subscribe(pattern, inbox)
    await bus.publish(subject, b"")
    await settle(bus)
    assert len(inbox.messages) == int(matches)


async def test_a_request_gets_its_own_answer(bus: Bus) -> None:
    async def echo(data: bytes, reply: str) -> None:
        await bus.publish(reply, data * 2)

    await bus.subscribe("t.echo", echo)
    await bus.flush()
    answers = await asyncio.gather(*(bus.request("t.echo", str(i).encode(), 10) for i in range(50)))
    assert answers == [str(i).encode() * 2 for i in range(50)]


async def test_a_request_that_nobody_listens_to_fails_at_once(bus: Bus) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match=r"t\.nobody"):
            await bus.request("t.nobody", b"", 60)


async def test_a_request_without_an_answer_fails_after_its_timeout(bus: Bus) -> None:
    await bus.subscribe("t.silent", Inbox())
    await bus.flush()
    with pytest.raises(Unavailable, match=r"within 0\.05 s"):
        await bus.request("t.silent", b"", 0.05)


async def test_gather_ends_early_when_it_has_enough(bus: Bus) -> None:
    for name in (b"a", b"b", b"c"):

        async def answer(_: bytes, reply: str, name: bytes = name) -> None:
            await bus.publish(reply, name)

        await bus.subscribe("t.all", answer)
    await bus.flush()
    async with asyncio.timeout(10):
        assert len(await bus.gather("t.all", b"", most=2, timeout_s=60)) == 2
        assert sorted(await bus.gather("t.all", b"", most=3, timeout_s=60)) == [b"a", b"b", b"c"]


async def test_gather_returns_what_came_in_time(bus: Bus) -> None:
    async def answer(_: bytes, reply: str) -> None:
        await bus.publish(reply, b"a")

    await bus.subscribe("t.some", answer)
    await bus.flush()
    assert await bus.gather("t.some", b"", most=5, timeout_s=0.2) == [b"a"]


async def test_gather_without_listeners_is_empty(bus: Bus) -> None:
    async with asyncio.timeout(10):
        assert await bus.gather("t.none", b"", most=3, timeout_s=60) == []


async def test_an_ended_subscription_receives_nothing_more(bus: Bus) -> None:
    inbox = Inbox()
    stop = await bus.subscribe("t.stop", inbox)
    await bus.publish("t.stop", b"1")
    await inbox.wait_for(1)
    await stop()
    await bus.publish("t.stop", b"2")
    await settle(bus)
    assert inbox.payloads == [b"1"]


async def test_a_message_published_to_nobody_is_dropped(bus: Bus) -> None:
    await bus.publish("t.later", b"lost")
    await bus.flush()
    inbox = Inbox()
    await bus.subscribe("t.later", inbox)
    await bus.publish("t.later", b"seen")
    await inbox.wait_for(1)
    assert inbox.payloads == [b"seen"]


async def test_four_megabytes_travel_unchanged(bus: Bus) -> None:
    payload = bytes(range(256)) * (4 * 4096)
    inbox = Inbox()
    await bus.subscribe("t.large", inbox)
    await bus.publish("t.large", payload)
    await inbox.wait_for(1)
    assert inbox.payloads == [payload]


async def test_reply_subjects_and_empty_payloads_are_carried(bus: Bus) -> None:
    inbox = Inbox()
    await bus.subscribe("t.reply", inbox)
    await bus.publish("t.reply", b"")
    await bus.publish("t.reply", b"", reply="me.here")
    await inbox.wait_for(2)
    assert inbox.messages == [(b"", ""), (b"", "me.here")]


async def test_a_subscription_is_known_to_others_after_a_flush(nats_url: str, nats_bus: NatsBus) -> None:
    other = await NatsBus.connect(nats_url, "other")
    for i in range(20):

        async def echo(data: bytes, reply: str) -> None:
            await other.publish(reply, data)

        await other.subscribe(f"t.known.{i}", echo)
        await other.flush()
        assert await nats_bus.request(f"t.known.{i}", b"x", 10) == b"x"
    await other.close()


async def test_a_message_over_the_servers_limit_is_too_large(nats_bus: NatsBus) -> None:
    assert nats_bus.max_payload_bytes == MAX_PAYLOAD_BYTES
    with pytest.raises(TooLarge, match=r"t\.big"):
        await nats_bus.publish("t.big", b"x" * (MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(TooLarge, match=r"t\.big"):
        await nats_bus.request("t.big", b"x" * (MAX_PAYLOAD_BYTES + 1), 1)


async def test_a_closed_bus_is_unavailable(nats_url: str) -> None:
    bus = await NatsBus.connect(nats_url, "closing")
    await bus.close()
    with pytest.raises(Unavailable):
        await bus.publish("t.closed", b"")
    with pytest.raises(Unavailable):
        await bus.request("t.closed", b"", 1)
    with pytest.raises(Unavailable):
        await bus.flush()


async def test_closing_delivers_what_was_published(nats_url: str, nats_bus: NatsBus) -> None:
    inbox = Inbox()
    await nats_bus.subscribe("t.last", inbox)
    await nats_bus.flush()
    other = await NatsBus.connect(nats_url, "leaving")
    await other.publish("t.last", b"words")
    await other.close()
    await inbox.wait_for(1)


async def test_an_address_without_a_server_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="--nats-url"):
        await NatsBus.connect("nats://127.0.0.1:1", "test", patience_s=0.3)


async def test_an_announced_service_answers_discovery(nats_bus: NatsBus) -> None:
    await nats_bus.announce("tokenizer", "tokenizer-0-abc", {"generate": "rz.v1.d.tokenizer.generate"})
    await nats_bus.flush()
    (answer,) = await nats_bus.gather("$SRV.INFO.rhizome-tokenizer", b"", most=1, timeout_s=10)
    assert b"tokenizer-0-abc" in answer


async def test_the_local_bus_remembers_announcements() -> None:
    bus = LocalBus()
    await bus.announce("tokenizer", "t-1", {})
    assert bus.announced == [("tokenizer", "t-1")]


async def test_what_a_queue_group_was_given_before_leaving_is_still_handled(bus: Bus) -> None:
    seen: list[bytes] = []
    first = asyncio.Event()

    async def slow(data: bytes, _: str) -> None:
        first.set()
        await asyncio.sleep(0)
        seen.append(data)

    leave = await bus.subscribe("leaving", slow, "group")
    await bus.flush()
    for i in range(50):
        await bus.publish("leaving", str(i).encode())
    await first.wait()
    await leave()
    assert seen == [str(i).encode() for i in range(50)]


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reserves what buckets may take, and all tests use the same server."""
    monkeypatch.setattr("shared.objects.BUCKET_BYTES", 32 * 1024 * 1024)


@pytest.mark.usefixtures("small_buckets")
async def test_an_object_of_many_chunks_comes_back_as_it_was_put(bus: Bus) -> None:
    data = bytes(range(256)) * (10 * 4096) + b"end"
    await bus.put_object("t-objects", "large", data, 60)
    await bus.put_object("t-objects", "empty", b"", 60)
    assert await bus.get_object("t-objects", "large") == data
    assert await bus.get_object("t-objects", "empty") == b""


@pytest.mark.usefixtures("small_buckets")
async def test_an_object_put_again_is_the_new_one(bus: Bus) -> None:
    await bus.put_object("t-objects", "twice", b"old", 60)
    await bus.put_object("t-objects", "twice", b"new", 50)
    assert await bus.get_object("t-objects", "twice") == b"new"


@pytest.mark.usefixtures("small_buckets")
async def test_objects_that_are_not_there_are_not_found(bus: Bus) -> None:
    with pytest.raises(NotFound, match="absent in t-nowhere"):
        await bus.get_object("t-nowhere", "absent")
    await bus.put_object("t-objects", "deleted", b"x", 60)
    await bus.delete_object("t-objects", "deleted")
    await bus.delete_object("t-objects", "deleted")
    await bus.delete_object("t-nowhere", "absent")
    with pytest.raises(NotFound, match="deleted in t-objects"):
        await bus.get_object("t-objects", "deleted")


@pytest.mark.usefixtures("small_buckets")
async def test_objects_expire_by_themselves(bus: Bus) -> None:
    await bus.put_object("t-brief", "short", b"x", 0.2)

    async def read_until_gone() -> None:
        while True:
            await bus.get_object("t-brief", "short")

    async with asyncio.timeout(10):
        with pytest.raises(NotFound):
            await read_until_gone()


async def test_a_full_bucket_refuses_and_keeps_what_it_has(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.objects.BUCKET_BYTES", 3 * 1024 * 1024)
    await bus.put_object("t-full", "first", b"x" * (2 * 1024 * 1024), 60)
    with pytest.raises(Overloaded, match="t-full is full"):
        await bus.put_object("t-full", "second", b"x" * (2 * 1024 * 1024), 60)
    assert len(await bus.get_object("t-full", "first")) == 2 * 1024 * 1024


async def test_objects_can_be_put_again_after_the_server_was_restarted() -> None:
    with EmbeddedNats() as server:
        bus = await NatsBus.connect(server.url, "test")
        await bus.put_object("t-restart", "a", b"1", 60)
        server.stop()
        server.start()
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(Unavailable):
                    await bus.put_object("t-restart", "b", b"2", 60)
                    break
        assert await bus.get_object("t-restart", "b") == b"2"
        with pytest.raises(NotFound):
            await bus.get_object("t-restart", "a")
        await bus.close()


async def test_a_server_without_jetstream_says_how_to_enable_it(plain_nats_url: str) -> None:
    bus = await NatsBus.connect(plain_nats_url, "test")
    put, get = bus.put_object("t-objects", "x", b"x", 60), bus.get_object("t-objects", "x")
    for call in (put, get, bus.delete_object("t-objects", "x")):
        with pytest.raises(Unavailable, match="enable JetStream"):
            await call
    await bus.close()


@pytest.fixture
def plain_nats_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server as other people start theirs."""
    without = nats_server._CONFIG[: nats_server._CONFIG.index("jetstream")]
    monkeypatch.setattr(nats_server, "_CONFIG", without)
    with EmbeddedNats() as server:
        yield server.url

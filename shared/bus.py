"""Bytes between services: one Protocol, two implementations.

`NatsBus` is the real one. `LocalBus` keeps everything inside one event loop, for tests and in-process stacks;
the behaviour suite in tests/contract runs on both. Handlers of one subscription run one after the other, in
order of arrival; a handler that must wait spawns a task.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro import add_service
from nats.micro.service import ServiceConfig

from shared import __version__
from shared.errors import ConfigError, TooLarge, Unavailable
from shared.objects import LocalObjects, NatsObjects, ObjectStore
from shared.wire import MAX_PAYLOAD_BYTES

Handler = Callable[[bytes, str], Awaitable[None]]
"""Called with (payload, reply subject or "")."""

PENDING_BYTES = 64 * 1024 * 1024


class Bus(ObjectStore, Protocol):
    """Publish, request-reply, subscribe; and objects that are too large for a message."""

    @property
    def max_payload_bytes(self) -> int:
        """Largest message that may be published."""

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send and forget. Bytes may be lost while the connection is down."""

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Send and wait for one answer.

        Raises:
            Unavailable: nobody listens on the subject, or no answer within `timeout_s`.
        """

    async def gather(self, subject: str, data: bytes, *, most: int, timeout_s: float) -> list[bytes]:
        """Send and collect up to `most` answers of several listeners within `timeout_s`."""

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], Awaitable[None]]:
        """Call `handler` for each message.

        Returns:
            A coroutine function that ends the subscription. What a queue group was given already, nobody else will
            get: it is still handled before the function returns (so its handler must not await it).
        """

    async def flush(self) -> None:
        """Return when the server has seen everything sent so far, subscriptions included.

        Raises:
            Unavailable: the server does not answer.
        """

    async def announce(self, service: str, instance: str, endpoints: dict[str, str]) -> None:
        """Answer `$SRV.PING/INFO/STATS` for this instance (NATS micro-service protocol)."""

    async def close(self) -> None:
        """Deliver what is pending, then disconnect."""


class NatsBus:
    """A connection to a NATS server, reconnecting for ever."""

    def __init__(self, client: Client) -> None:
        self._nc = client
        self._objects = NatsObjects(client)
        self._micro: list[Any] = []

    @classmethod
    async def connect(
        cls, url: str, name: str, on_event: Callable[[str], None] = lambda _: None, *, patience_s: float = 30.0
    ) -> NatsBus:
        """Connect, waiting up to `patience_s` for a server that is still starting.

        Raises:
            ConfigError: no server answered at `url`.
        """

        async def disconnected() -> None:
            on_event("bus disconnected")

        async def reconnected() -> None:
            on_event("bus reconnected")

        why: Exception = TimeoutError("no answer")

        async def error(fault: Exception) -> None:
            nonlocal why
            why = fault
            on_event(f"bus error: {fault!r}")

        try:
            # With endless reconnection the client also tries the first connection endlessly: the bound is ours.
            async with asyncio.timeout(patience_s):
                client = await nats.connect(
                    url, name=name, max_reconnect_attempts=-1, reconnect_time_wait=0.5, connect_timeout=2,
                    disconnected_cb=disconnected, reconnected_cb=reconnected, error_cb=error,
                    allow_reconnect=True, pending_size=PENDING_BYTES, max_outstanding_pings=5,
                )  # fmt: skip
        except (TimeoutError, OSError, nats.errors.Error) as fault:
            raise ConfigError(f"no NATS server at {url} ({why}): start one or change --nats-url") from fault
        return cls(client)

    @property
    def max_payload_bytes(self) -> int:
        return int(self._nc.max_payload)

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        try:
            await self._nc.publish(subject, data, reply=reply)
        except nats.errors.MaxPayloadError as fault:
            raise self._too_large(subject, data) from fault
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as fault:
            raise Unavailable(f"message bus: {fault}") from fault

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        try:
            return (await self._nc.request(subject, data, timeout=timeout_s)).data
        except nats.errors.NoRespondersError as fault:
            raise Unavailable(f"no service listens on {subject}") from fault
        except (TimeoutError, nats.errors.TimeoutError) as fault:
            raise Unavailable(f"no answer on {subject} within {timeout_s:g} s") from fault
        except nats.errors.MaxPayloadError as fault:
            raise self._too_large(subject, data) from fault
        except nats.errors.Error as fault:
            raise Unavailable(f"message bus: {fault}") from fault

    def _too_large(self, subject: str, data: bytes) -> TooLarge:
        limit = self.max_payload_bytes
        return TooLarge(f"{len(data):,} bytes for {subject} are over the server's max_payload of {limit:,}: raise it")

    async def gather(self, subject: str, data: bytes, *, most: int, timeout_s: float) -> list[bytes]:
        inbox, done = self._nc.new_inbox(), asyncio.Event()
        answers: list[bytes] = []

        async def collect(msg: Msg) -> None:
            nobody_listens = (msg.headers or {}).get("Status") == "503"
            if not nobody_listens and len(answers) < most:
                answers.append(msg.data)
            if nobody_listens or len(answers) >= most:
                done.set()

        sub = await self._nc.subscribe(inbox, cb=collect)
        try:
            await self.publish(subject, data, reply=inbox)
            await asyncio.wait_for(done.wait(), timeout_s)
        except TimeoutError:
            pass
        finally:
            await sub.unsubscribe()
        return answers

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], Awaitable[None]]:
        async def on_message(msg: Msg) -> None:
            await handler(msg.data, msg.reply)

        sub = await self._nc.subscribe(subject, queue=queue, cb=on_message, pending_bytes_limit=PENDING_BYTES * 4)

        async def leave() -> None:
            if queue and self._nc.is_connected:
                await sub.drain()  # type: ignore[no-untyped-call]
            else:
                await sub.unsubscribe()

        return leave

    async def flush(self) -> None:
        # The client writes its PING past the commands that its flusher task still holds; they were written by the
        # time the first PONG is back, so the second one covers them.
        try:
            await self._nc.flush()
            await self._nc.flush()
        except nats.errors.Error as fault:
            raise Unavailable(f"message bus: {fault}") from fault

    async def put_object(self, bucket: str, name: str, data: bytes, ttl_s: float) -> None:
        await self._objects.put_object(bucket, name, data, ttl_s)

    async def get_object(self, bucket: str, name: str) -> bytes:
        return await self._objects.get_object(bucket, name)

    async def delete_object(self, bucket: str, name: str) -> None:
        await self._objects.delete_object(bucket, name)

    async def announce(self, service: str, instance: str, endpoints: dict[str, str]) -> None:
        config = ServiceConfig(
            name=f"rhizome-{service}", version=__version__, metadata={"instance": instance, **endpoints}
        )
        self._micro.append(await add_service(self._nc, config))

    async def close(self) -> None:
        for service in self._micro:
            await service.stop()
        if self._nc.is_connected:
            await self._nc.drain()
        await self._nc.close()


class LocalBus(LocalObjects):
    """The same behaviour inside one event loop, without a server."""

    def __init__(self) -> None:
        super().__init__()
        self._subs: list[_LocalSub] = []
        self._inbox = itertools.count()
        self.announced: list[tuple[str, str]] = []
        self.max_payload_bytes = MAX_PAYLOAD_BYTES

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        self._deliver(subject, data, reply)

    def _deliver(self, subject: str, data: bytes, reply: str) -> int:
        groups: dict[str, list[_LocalSub]] = {}
        takers = []
        for sub in self._subs:
            if sub.matches(subject):
                if sub.queue:
                    groups.setdefault(sub.queue, []).append(sub)
                else:
                    takers.append(sub)
        takers += [min(members, key=lambda s: s.taken) for members in groups.values()]
        for sub in takers:
            sub.put(data, reply)
        return len(takers)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        answers = await self._ask(subject, data, 1, timeout_s)
        if not answers:
            raise Unavailable(f"no answer on {subject} within {timeout_s:g} s")
        return answers[0]

    async def gather(self, subject: str, data: bytes, *, most: int, timeout_s: float) -> list[bytes]:
        try:
            return await self._ask(subject, data, most, timeout_s)
        except Unavailable:
            return []

    async def _ask(self, subject: str, data: bytes, most: int, timeout_s: float) -> list[bytes]:
        inbox, done = f"_INBOX.{next(self._inbox)}", asyncio.Event()
        answers: list[bytes] = []

        async def collect(payload: bytes, _: str) -> None:
            if len(answers) < most:
                answers.append(payload)
            if len(answers) >= most:
                done.set()

        stop = await self.subscribe(inbox, collect)
        try:
            if not self._deliver(subject, data, inbox):
                raise Unavailable(f"no service listens on {subject}")
            await asyncio.wait_for(done.wait(), timeout_s)
        except TimeoutError:
            pass
        finally:
            await stop()
        return answers

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], Awaitable[None]]:
        sub = _LocalSub(subject.split("."), handler, queue)
        self._subs.append(sub)

        async def stop() -> None:
            if sub in self._subs:
                self._subs.remove(sub)
                if queue:
                    await sub.finish()
            sub.close()

        return stop

    async def flush(self) -> None:
        await asyncio.sleep(0)

    async def announce(self, service: str, instance: str, endpoints: dict[str, str]) -> None:
        self.announced.append((service, instance))

    async def close(self) -> None:
        for sub in self._subs:
            sub.close()
        self._subs.clear()


class _LocalSub:
    """One subscription: a queue and the task that empties it in order."""

    def __init__(self, pattern: list[str], handler: Handler, queue: str) -> None:
        self._pattern, self._handler, self.queue = pattern, handler, queue
        self._pending: deque[tuple[bytes, str]] = deque()
        self._wake = asyncio.Event()
        self.taken = 0
        self._finishing = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def matches(self, subject: str) -> bool:
        parts = subject.split(".")
        for i, want in enumerate(self._pattern):
            if want == ">":
                return len(parts) > i
            if i >= len(parts) or want not in ("*", parts[i]):
                return False
        return len(parts) == len(self._pattern)

    def put(self, data: bytes, reply: str) -> None:
        self.taken += 1
        self._pending.append((data, reply))
        self._wake.set()

    def close(self) -> None:
        if self._task is not asyncio.current_task():
            self._task.cancel()

    async def finish(self) -> None:
        """Handle what is pending, then end."""
        self._finishing = True
        self._wake.set()
        await self._task

    async def _run(self) -> None:
        while not self._finishing:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                await self._handler(*self._pending.popleft())

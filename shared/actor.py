"""Life of a service on the bus: typed handlers, heartbeats, metrics, draining.

An `Actor` is composed into each `services/X/service.py`. It decodes messages, calls the service's plain
functions, turns their errors into replies, and is the one place that catches everything: a bad message or a bug
in one handler costs that message, never the process.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, generate_latest, start_http_server

from shared import messages as m
from shared import wire
from shared.bus import Bus
from shared.config import CommonConfig
from shared.errors import RhizomeError, Unavailable, from_code
from shared.log import Log
from shared.messages.control import State
from shared.subjects import Subjects

M = TypeVar("M")
A = TypeVar("A")
HEARTBEAT_S = 1.0
LIVENESS_TIMEOUT_S = 15.0
"""An instance whose heartbeat was not heard for this long counts as lost (a kill is told at once by Goodbye)."""

MAX_ERROR_CHARS = 4000  # a message may quote what the client sent; the reply has to fit `ErrorReply`


class Actor:
    """One instance of one service. Lives as long as the process; owned by its event loop."""

    def __init__(self, service: str, config: CommonConfig, bus: Bus, log: Log) -> None:
        self.service = service
        self.name = config.name or default_name(service)
        self.id = f"{self.name}-{secrets.token_hex(3)}"
        self.subjects = Subjects(config.deployment)
        self.bus = bus
        self.log = log.bind(id=self.id)
        self.registry = CollectorRegistry()
        self.state: State = "starting"
        self.facts = m.ServiceFacts()
        self.engines_ready = 0
        self._config = config
        self._started_s = time.time()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._endpoints: dict[str, str] = {}
        self._unsubscribe: list[Callable[[], Awaitable[None]]] = []
        self.quitting = ""
        """Why the process ends without draining; empty while it may go on."""
        self._ending = asyncio.Event()
        self._leave: list[Callable[[], Awaitable[None]]] = []
        self._errors = Counter(
            "rhizome_handler_errors", "Messages whose handler failed", ["subject", "code"], registry=self.registry
        )

    async def on(self, subject: str, cls: type[M], handler: Callable[[M], Any], queue: str = "") -> None:
        """Call `handler(message)` for every message on `subject`; sync or async, awaited in order."""

        async def entry(data: bytes, _: str) -> None:
            try:
                result = handler(wire.decode(cls, data))
                if inspect.isawaitable(result):
                    await result
            except Exception as fault:  # the wrapper that keeps a service alive
                self._failed(subject, fault)

        (self._leave if queue else self._unsubscribe).append(await self.bus.subscribe(subject, entry, queue))

    async def serve(self, subject: str, cls: type[M], handler: Callable[[M], Awaitable[A]], queue: str = "") -> None:
        """Answer each request on `subject` with the message that `handler` returns or with an `ErrorReply`.

        Requests are handled concurrently.
        """

        async def entry(data: bytes, reply: str) -> None:
            self.spawn(answer(data, reply))

        async def answer(data: bytes, reply: str) -> None:
            try:
                out = wire.encode(await handler(wire.decode(cls, data)))
            except Exception as fault:  # the wrapper that keeps a service alive
                out = wire.encode(m.ErrorReply(self._failed(subject, fault)))
            if reply:
                await self.bus.publish(reply, out)

        self._endpoints[subject.removeprefix(self.subjects.root + ".")] = subject
        (self._leave if queue else self._unsubscribe).append(await self.bus.subscribe(subject, entry, queue))

    async def send(self, subject: str, msg: Any) -> None:
        """Publish a message."""
        await self.bus.publish(subject, wire.encode(msg))

    async def ask(self, subject: str, msg: Any, cls: type[A], timeout_s: float = 10.0) -> A:
        """Request-reply.

        Raises:
            RhizomeError: what the other side answered, or Unavailable.
        """
        return decode_reply(cls, await self.bus.request(subject, wire.encode(msg), timeout_s))

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine beside the handlers; a failure is logged, the task is cancelled at shutdown."""
        task = asyncio.get_running_loop().create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    async def start(self) -> None:
        """Answer discovery and scrapes and begin heartbeats. Call after the service's own subscriptions."""
        await self.bus.subscribe(self.subjects.metrics, self._scrape)
        await self.bus.announce(self.service, self.id, self._endpoints)
        await self.bus.flush()
        if self._config.metrics_port:
            start_http_server(self._config.metrics_port, registry=self.registry)
        self.spawn(self._beat_forever())

    async def set_state(self, state: State) -> None:
        """Change state and tell everybody at once."""
        if state != self.state:
            self.state = state
            self.log.info(state)
            await self.beat()

    async def beat(self) -> None:
        """Publish one heartbeat now."""
        beat = m.Heartbeat(
            service=self.service, name=self.name, id=self.id, state=self.state, pid=os.getpid(),
            host=socket.gethostname(), started_s=self._started_s, facts=self.facts, engines_ready=self.engines_ready,
        )  # fmt: skip
        await self.send(self.subjects.heartbeat, beat)

    def quit(self, reason: str) -> None:
        """End the process without draining, with exit status 1: it cannot go on, its supervisor starts another."""
        self.quitting = reason
        self._ending.set()

    async def run(self, drain: Callable[[], Awaitable[None]] | None = None) -> int:
        """Wait for SIGTERM or SIGINT, then drain within the configured bound, say goodbye and disconnect.

        Returns the exit status: 0, or 1 after `quit`.
        """
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._ending.set)
        await self._ending.wait()
        if self.quitting:
            await self.stop(self.quitting)
            return 1
        await self.set_state("draining")
        if drain is not None:
            try:
                await asyncio.wait_for(drain(), self._config.drain_timeout_s)
            except TimeoutError:
                self.log.warning("drain timed out", timeout_s=self._config.drain_timeout_s)
        await self.stop("drained")
        return 0

    async def leave_queues(self) -> None:
        """Take no new work: end the subscriptions that share it with other instances. First step of a drain."""
        leaving, self._leave = self._leave, []
        await asyncio.gather(*(leave() for leave in leaving))

    async def stop(self, reason: str) -> None:
        """End subscriptions and tasks, say goodbye, disconnect."""
        await self.leave_queues()
        for unsubscribe in self._unsubscribe:
            await unsubscribe()
        await self.send(
            self.subjects.goodbye,
            m.Goodbye(service=self.service, name=self.name, id=self.id, at_s=time.time(), reason=reason),
        )
        for task in self._tasks:
            task.cancel()
        await self.bus.close()

    async def _beat_forever(self) -> None:
        while True:
            try:
                await self.beat()
            except Unavailable as fault:
                self.log.warning("heartbeat not sent", error=fault.message)
            await asyncio.sleep(HEARTBEAT_S)

    async def _scrape(self, _: bytes, reply: str) -> None:
        if reply:
            text = generate_latest(self.registry).decode()
            await self.send(reply, m.MetricsText(service=self.service, id=self.id, text=text))

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self.log.error("task failed", fault=fault)

    def _failed(self, subject: str, fault: Exception) -> m.ErrorInfo:
        short = subject.removeprefix(self.subjects.root + ".")
        if isinstance(fault, RhizomeError):
            self._errors.labels(short, fault.code).inc()
            return m.ErrorInfo(fault.code, fault.message[:MAX_ERROR_CHARS], fault.param and fault.param[:200])
        self._errors.labels(short, RhizomeError.code).inc()
        self.log.error("handler failed", fault=fault, subject=short)
        return m.ErrorInfo(RhizomeError.code, f"{self.service} failed on this message: {type(fault).__name__}")


def default_name(service: str) -> str:
    """Name of an instance that was given none: no other instance has it, and a restarted container has it again.

    The scheduler is `scheduler-0`, because engines look for it by name.
    """
    if service == "scheduler":
        return "scheduler-0"
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:32]
    return f"{service}-{host}-{os.getpid()}"


def decode_reply(cls: type[A], data: bytes) -> A:
    """Decode an answer.

    Raises:
        RhizomeError: the answer is an `ErrorReply`.
    """
    if data.startswith(b'{"error"'):
        error = wire.decode(m.ErrorReply, data).error
        raise from_code(error.code, error.message, error.param)
    return wire.decode(cls, data)

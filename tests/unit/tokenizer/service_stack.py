"""The service on a bus, with a scripted scheduler and a client on the other side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from services.tokenizer.config import TokenizerConfig
from services.tokenizer.encoder import Encoder
from services.tokenizer.model import load_model
from services.tokenizer.service import Limits, TokenizerService
from shared import log, wire
from shared import messages as m
from shared.actor import Actor
from shared.bus import Bus
from shared.config import CommonConfig
from shared.errors import (
    RhizomeError,
)
from shared.messages.generation import RUNNING
from tests.unit.tokenizer import tiny

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
REPLY = "client.deltas"


@dataclass
class FakeScheduler:
    """Accepts requests and aborts, and says what the test tells it to say."""

    bus: Bus
    actor: Actor
    tokenizer_id: str
    refusal: RhizomeError | None = None
    early: list[list[int]] = field(default_factory=list)
    """Tokens sent before the request is answered."""
    requests: asyncio.Queue[m.TokenizedRequest] = field(default_factory=asyncio.Queue)
    aborts: asyncio.Queue[m.AbortHandles] = field(default_factory=asyncio.Queue)
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.actor.id

    async def start(self) -> None:
        self.hold.set()
        subjects = self.actor.subjects
        await self.actor.serve(subjects.schedule, m.TokenizedRequest, self._schedule, "scheduler")
        await self.actor.on(subjects.scheduler_abort(self.id), m.AbortHandles, self.aborts.put)
        await self.bus.flush()

    async def _schedule(self, request: m.TokenizedRequest) -> m.Queued:
        await self.requests.put(request)
        total = 0
        for ids in self.early:
            total += len(ids)
            await self.say(request.handle, ids, total)
        await self.hold.wait()
        if self.refusal is not None:
            raise self.refusal
        return m.Queued(self.id)

    async def say(self, handle: int, ids: list[int], total: int, finish: int = RUNNING) -> None:
        batch = m.TokenBatch(
            self.id, np.array([handle], np.uint32), np.array([len(ids)], np.int32), np.array([total], np.int32),
            np.array(ids, np.int32), np.array([finish], np.uint8), np.array([0], np.int32),
        )  # fmt: skip
        await self.actor.send(self.actor.subjects.tokenizer_tokens(self.tokenizer_id), batch)

    async def fail(self, handle: int, error: m.ErrorInfo) -> None:
        """The request ends with an error."""
        none, codes = np.empty(0, np.int32), np.empty(0, np.uint8)
        batch = m.TokenBatch(
            self.id, np.empty(0, np.uint32), none, none, none, codes, none, errors=[m.TokenError(handle, error)]
        )
        await self.actor.send(self.actor.subjects.tokenizer_tokens(self.tokenizer_id), batch)


@dataclass
class FakeVision:
    """Accepts demands and answers when the test tells it to."""

    bus: Bus
    actor: Actor
    refusal: RhizomeError | None = None
    demands: asyncio.Queue[m.EncodeMedia] = field(default_factory=asyncio.Queue)
    cancels: asyncio.Queue[m.CancelEncode] = field(default_factory=asyncio.Queue)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, demands are heard and not accepted."""

    @property
    def id(self) -> str:
        return self.actor.id

    async def start(self) -> None:
        self.hold.set()
        subjects = self.actor.subjects
        await self.actor.serve(subjects.encode_media, m.EncodeMedia, self._accept, "vision")
        await self.actor.on(subjects.vision_cancel(self.id), m.CancelEncode, self.cancels.put)
        await self.bus.flush()

    async def _accept(self, demand: m.EncodeMedia) -> m.EncodeAccepted:
        await self.demands.put(demand)
        await self.hold.wait()
        if self.refusal is not None:
            raise self.refusal
        return m.EncodeAccepted(self.id)

    async def answer(self, demand: m.EncodeMedia, *media: m.EncodedMedia, error: m.ErrorInfo | None = None) -> None:
        subject = self.actor.subjects.tokenizer_media(demand.tokenizer_id)
        await self.actor.send(subject, m.MediaEncoded(self.id, demand.handle, list(media), error))


class Client:
    """Asks on the public subjects and gathers its deltas."""

    def __init__(self, bus: Bus, actor: Actor) -> None:
        self.actor, self._bus = actor, bus
        self.deltas: asyncio.Queue[m.TextDelta] = asyncio.Queue()

    async def listen(self, reply: str = REPLY) -> None:
        async def take(data: bytes, _: str) -> None:
            for delta in wire.decode(m.TextDeltas, data).deltas:
                self.deltas.put_nowait(delta)

        await self._bus.subscribe(reply, take)
        await self._bus.flush()

    async def generate(self, rid: str = "r", reply: str = REPLY, **fields: Any) -> m.Accepted:
        if not fields.keys() & {"chat", "text", "input_ids"}:
            fields["text"] = "The dog"
        request = m.GenerateRequest(rid, reply, **fields)
        return await self.actor.ask(self.actor.subjects.generate, request, m.Accepted)

    async def ending(self) -> m.TextDelta:
        while True:
            delta = await self.deltas.get()
            if delta.finish_reason is not None:
                return delta


@dataclass
class Stack:
    """Everything a test talks to."""

    service: TokenizerService
    encoder: Encoder
    actor: Actor
    scheduler: FakeScheduler
    client: Client
    vision: FakeVision
    """Does not listen until it is started."""

    def ids(self, text: str) -> list[int]:
        return tiny.vocabulary(tiny.byte_level()).encode(text, add_special_tokens=False)

    def beat(self, service: str, instance: str) -> m.Heartbeat:
        return m.Heartbeat(service, instance, instance, "ready", 1, "host", time.time())


async def build(
    folder: Path, bus: Bus, max_streams: int = 100, clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep, **limits: float,
) -> AsyncIterator[Stack]:  # fmt: skip
    common = CommonConfig(deployment=f"t{time.monotonic_ns()}")
    config = TokenizerConfig(model_path=str(folder), common=common)
    quiet = log.setup("tokenizer", "error")
    actor = Actor("tokenizer", common, bus, quiet)
    encoder = Encoder(threads=1, max_pending=2)
    service = TokenizerService(actor, load_model(config), encoder, Limits(max_streams, **limits), clock, wait)
    scheduler = FakeScheduler(bus, Actor("scheduler", common, bus, quiet), actor.id)
    client = Client(bus, Actor("gateway", common, bus, quiet))
    vision = FakeVision(bus, Actor("vision", common, bus, quiet))
    await scheduler.start()
    await service.start()
    await client.listen()
    yield Stack(service, encoder, actor, scheduler, client, vision)
    encoder.close()
    await actor.stop("test ended")

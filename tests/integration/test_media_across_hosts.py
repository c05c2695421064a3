"""Real tokenizer, vision, scheduler and worker on a NATS server, where the worker does not see vision's files: the
tokens are those of a worker that does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from services.scheduler.config import SchedulerConfig
from services.scheduler.service import SchedulerService
from services.tokenizer.config import TokenizerConfig
from services.tokenizer.encoder import Encoder
from services.tokenizer.model import load_model
from services.tokenizer.service import Limits, TokenizerService
from services.vision.build import build_service
from services.vision.build import load_model as load_vision
from services.vision.config import VisionConfig
from services.worker.build import build_engine
from services.worker.config import WorkerConfig
from services.worker.service import WorkerService
from shared import log, wire
from shared import messages as m
from shared.actor import Actor
from shared.bus import Bus, Handler, NatsBus
from shared.config import CommonConfig
from shared.sampling import SamplingParams
from tests.fakes.service_plane import Connection
from tests.unit.tokenizer.service_stack import Client
from tests.unit.vision.checkpoints import checkpoint, picture

FAMILY = "qwen3_vl"
ANSWER_S = 60.0
Change = Callable[[m.StageMedia], m.StageMedia]


def of_another_host(ask: m.StageMedia) -> m.StageMedia:
    """The same demand as a worker on another host reads it: there is no such file."""
    return dataclasses.replace(
        ask, refs=[dataclasses.replace(ref, path="/another/host" + ref.path) for ref in ask.refs]
    )


class WorkerSide(Connection):
    """A worker's end of the bus: `change` stands between it and what it is to stage."""

    def __init__(self, bus: Bus, change: Change) -> None:
        super().__init__(bus)
        self._change = change
        self.objects_read = 0
        self.get_object = self._counted

    async def _counted(self, bucket: str, name: str) -> bytes:
        self.objects_read += 1
        return await self._bus.get_object(bucket, name)

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], Awaitable[None]]:
        if not subject.endswith(".media"):
            return await super().subscribe(subject, handler, queue)

        async def changed(data: bytes, reply: str) -> None:
            await handler(wire.encode(self._change(wire.decode(m.StageMedia, data))), reply)

        return await super().subscribe(subject, changed, queue)


class Deployment:
    """One of each service."""

    def __init__(self, bus: NatsBus, deployment: str, memory: Path, change: Change) -> None:
        self._bus, self._memory = bus, memory
        self.worker_side = WorkerSide(bus, change)
        self._common = CommonConfig(deployment=deployment)
        self._actors: list[Actor] = []

    def _actor(self, service: str, bus: Bus | None = None) -> Actor:
        common = dataclasses.replace(self._common, name=f"{service}-0")
        actor = Actor(service, common, bus or Connection(self._bus), log.setup("test", "error"))
        self._actors.append(actor)
        return actor

    async def start(self) -> None:
        model, common = str(checkpoint(FAMILY)[0]), self._common
        await SchedulerService(self._actor("scheduler"), SchedulerConfig(common=common)).start()
        worker = WorkerConfig(
            model_path=model, num_threads=1, max_total_tokens=1024, max_running_requests=4,
            attention_backend="torch", common=common,
        )  # fmt: skip
        await WorkerService(self._actor("worker", self.worker_side), worker, build_engine).start()  # type: ignore[arg-type]
        vision_actor = self._actor("vision")
        vision = VisionConfig(
            model_path=model, shared_memory_dir=str(self._memory), vision_device="cpu", common=vision_actor._config
        )
        self.vision = await build_service(vision_actor, vision, load_vision)
        await self.vision.start()
        tokenizer = TokenizerConfig(model_path=model, common=common)
        encoder = Encoder(threads=1, max_pending=2)
        await TokenizerService(self._actor("tokenizer"), load_model(tokenizer), encoder, Limits(100)).start()
        self.client = Client(self._bus, self._actor("gateway"))
        await self.client.listen(f"client.{common.deployment}")

    def encoded_media(self) -> float:
        """Images that the encoder worked on."""
        value = self.vision._actor.registry.get_sample_value("rhizome_vision_media_total", {"kind": "image"})
        return value or 0.0

    async def tokens(self, *seeds: int) -> list[int]:
        """What is generated for a prompt with these pictures."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": "Compare "}]
        for seed in seeds:
            out = io.BytesIO()
            picture(70 + seed, 60, seed).save(out, "PNG")
            url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
            parts.append({"type": "image_url", "image_url": {"url": url}})
        async with asyncio.timeout(ANSWER_S):
            await self.client.generate(
                rid="r", reply=f"client.{self._common.deployment}",
                chat=m.ChatInput([{"role": "user", "content": parts}]), stream=False,
                sampling=SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True),
            )  # fmt: skip
            ending = await self.client.ending()
        assert ending.error is None, ending.error
        return ending.token_ids

    async def stop(self) -> None:
        for actor in reversed(self._actors):
            await actor.stop("test ended")


@contextlib.asynccontextmanager
async def deployment(bus: NatsBus, name: str, folder: Path, change: Change) -> AsyncIterator[Deployment]:
    (folder / name).mkdir()
    running = Deployment(bus, f"hosts-{name}", folder / name, change)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


async def test_embeddings_go_through_the_object_store_where_files_cannot_be_seen(
    nats_bus: NatsBus, tmp_path: Path
) -> None:
    async with deployment(nats_bus, "near", tmp_path, lambda ask: ask) as near:
        want = await near.tokens(1, 2)
        assert near.worker_side.objects_read == 0
        assert await near.tokens(2, 1) != want
    async with deployment(nats_bus, "far", tmp_path, of_another_host) as far:
        assert await far.tokens(1, 2) == want
        assert far.worker_side.objects_read == 2


async def test_embeddings_that_are_nowhere_any_more_are_made_again(nats_bus: NatsBus, tmp_path: Path) -> None:
    """The cache was emptied between the encoder's answer and the prompt's turn."""
    lost: list[str] = []

    def emptied(ask: m.StageMedia) -> m.StageMedia:
        if not lost:
            for ref in ask.refs:
                lost.append(ref.key)
                Path(ref.path).unlink()
        return ask

    async with deployment(nats_bus, "whole", tmp_path, lambda ask: ask) as whole:
        want = await whole.tokens(3)
    async with deployment(nats_bus, "lossy", tmp_path, emptied) as lossy:
        assert await lossy.tokens(3) == want
        assert len(lost) == 1
        assert lossy.encoded_media() == 2

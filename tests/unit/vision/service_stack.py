"""The service on a bus, with a fake model, and a tokenizer on the other side."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.vision.build import Model, build_service
from services.vision.config import VisionConfig
from services.vision.service import VisionService
from shared import log
from shared import messages as m
from shared.actor import Actor
from shared.bus import Bus
from shared.config import CommonConfig
from tests.fakes.vision_model import FakeEncoder, FakeProcessor


def config_for(folder: Path, **more: object) -> VisionConfig:
    """A model directory and shared memory below `folder`."""
    for name in ("model", "memory"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    return VisionConfig(
        model_path=str(folder / "model"), shared_memory_dir=str(folder / "memory"),
        common=CommonConfig(name="vision-0"), **more,
    )  # fmt: skip


@dataclass
class Vision:
    """One instance. `start` it, then `drain` or `crash`."""

    bus: Bus
    config: VisionConfig
    encoder: FakeEncoder = field(default_factory=FakeEncoder)
    actor: Actor = field(init=False)
    service: VisionService = field(init=False)

    async def start(self) -> Vision:
        self.actor = Actor("vision", self.config.common, self.bus, log.setup("test", "error"))
        self.service = await build_service(self.actor, self.config, lambda *_: Model(FakeProcessor(), self.encoder))
        await self.service.start()
        await self.bus.flush()
        return self

    def metric(self, name: str, **labels: str) -> float:
        return self.actor.registry.get_sample_value(f"rhizome_vision_{name}", labels) or 0.0

    async def crash(self) -> None:
        """End without a word: locks go, files stay."""
        for task in self.actor._tasks:
            task.cancel()
        await asyncio.gather(*self.actor._tasks, return_exceptions=True)
        await self.actor.leave_queues()
        leaving, self.actor._unsubscribe = self.actor._unsubscribe, []
        for leave in leaving:
            await leave()
        self.service._own.release()
        self.service._memory.release()


class Tokenizer:
    """Demands media and collects the answers."""

    def __init__(self, bus: Bus) -> None:
        self.actor = Actor("tokenizer", CommonConfig(name="tokenizer-0"), bus, log.setup("test", "error"))
        self._answers: dict[int, asyncio.Future[m.MediaEncoded]] = {}
        self._handle = 0

    async def start(self) -> Tokenizer:
        await self.actor.on(self.actor.subjects.tokenizer_media(self.actor.id), m.MediaEncoded, self._answered)
        await self.actor.bus.flush()
        return self

    async def demand(self, *sources: m.MediaSource | str) -> tuple[int, m.EncodeAccepted]:
        """Ask; returns the handle and the answer to the asking."""
        self._handle += 1
        self._answers[self._handle] = asyncio.get_running_loop().create_future()
        listed = [source if isinstance(source, m.MediaSource) else m.MediaSource(source) for source in sources]
        listed = [dataclasses.replace(s, param=s.param or f"media[{i}]") for i, s in enumerate(listed)]
        demand = m.EncodeMedia(self.actor.id, self._handle, "r", listed)
        return self._handle, await self.actor.ask(self.actor.subjects.encode_media, demand, m.EncodeAccepted)

    async def answer(self, handle: int) -> m.MediaEncoded:
        async with asyncio.timeout(30):
            return await self._answers[handle]

    async def encode(self, *sources: m.MediaSource | str) -> m.MediaEncoded:
        handle, _ = await self.demand(*sources)
        return await self.answer(handle)

    def has_answer(self, handle: int) -> bool:
        return self._answers[handle].done()

    def _answered(self, answer: m.MediaEncoded) -> None:
        if not self._answers[answer.handle].done():
            self._answers[answer.handle].set_result(answer)


def keys(media: Sequence[m.EncodedMedia]) -> list[str]:
    return [item.ref.key for item in media]

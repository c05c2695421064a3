"""Ranks have embeddings at hand: from the file, else through the object store; what nobody has is told as missing."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch

from services.worker.config import WorkerConfig
from services.worker.engine_spec import EngineSpec
from services.worker.media_store import MediaStore
from services.worker.service import WorkerService
from shared import embedding_file, log, wire
from shared import messages as m
from shared.actor import Actor
from shared.bus import Bus, LocalBus
from shared.config import CommonConfig
from shared.errors import MediaLost
from shared.subjects import Subjects
from tests.unit.worker.test_service import Inbox, ScriptedEngine

CONFIG = WorkerConfig(model_path="/models/tiny", common=CommonConfig(deployment="t"))
SUBJECTS = Subjects("t")
SESSION = "sched-1.1"
WIDTH = 4
BUCKET = "rz-t-embeddings"


class Engine(ScriptedEngine):
    """Keeps what it is given."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self.media = MediaStore(WIDTH, torch.float32, torch.device("cpu"))
        self.staged = 0
        stage = self.media.stage

        def counted(session: str, slot: int, rows: np.ndarray, dtype: str) -> None:
            self.staged += 1
            stage(session, slot, rows, dtype)

        self.media.stage = counted  # type: ignore[method-assign]

    def rows(self, slot: int, tokens: int) -> np.ndarray:
        """What a plan would take."""
        taken = self.media.take(SESSION, np.array([[0, tokens, slot, 0]], np.int64), torch.arange(tokens))
        assert taken is not None
        return taken.rows.numpy()


class Vision:
    """Shares what it holds through the object store."""

    def __init__(self, bus: Bus) -> None:
        self.actor = Actor("vision", CONFIG.common, bus, log.setup("test", "error"))
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def start(self) -> None:
        await self.actor.serve(SUBJECTS.vision_share(self.actor.id), m.ShareEmbedding, self._share)
        await self.actor.bus.flush()

    async def _share(self, ask: m.ShareEmbedding) -> m.EmbeddingShared:
        self.asked.append(ask.key)
        if ask.key not in self.files:
            raise MediaLost("not kept any more")
        await self.actor.bus.put_object(BUCKET, ask.key, self.files[ask.key], 60.0)
        return m.EmbeddingShared(BUCKET, ask.key)


@dataclasses.dataclass
class Stack:
    """A rank, a vision instance, and the scheduler's ear."""

    bus: Bus
    engine: Engine
    vision: Vision
    answers: Inbox
    folder: Path

    def written(self, image: int, tokens: int = 3) -> tuple[m.EmbeddingRef, np.ndarray]:
        """Embeddings in a file, as vision writes them."""
        numbers = np.full((tokens, WIDTH), image, np.float32)
        ref = m.EmbeddingRef(f"{image:032x}", self.vision.actor.id, "", tokens, WIDTH, "float32")
        ref = embedding_file.write(self.folder, m.EncodedMedia("image", ref), numbers.tobytes())
        self.vision.files[ref.key] = Path(ref.path).read_bytes()
        return ref, numbers

    async def stage(self, *refs: m.EmbeddingRef, first: int = 0) -> m.MediaStaged:
        slots = list(range(first, first + len(refs)))
        ask = m.StageMedia(self.engine.spec.engine_id, SESSION, slots, list(refs))
        await self.bus.publish(SUBJECTS.engine_media(self.engine.spec.engine_id), wire.encode(ask))
        staged: m.MediaStaged = await self.answers.next()
        assert (staged.engine_id, staged.session, staged.tp_rank) == (self.engine.spec.engine_id, SESSION, 0)
        return staged


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    bus = LocalBus()
    engines: list[Engine] = []

    def build(config: WorkerConfig, instance: str, _: log.Log) -> Engine:
        engines.append(
            Engine(EngineSpec(
                engine_id=instance, group=[instance], model="tiny", tp_size=1, device="cpu", dtype="float32",
                attention_backend="none", page_size=16, num_pages=8, max_rows=4, context_length=64, vocab_size=100,
                prefill_tokens=512, mask_slots=8, media_bytes=1 << 20,
            ))
        )  # fmt: skip
        return engines[0]

    worker = WorkerService(Actor("worker", CONFIG.common, bus, log.setup("worker", "error")), CONFIG, build)
    vision = Vision(bus)
    await vision.start()
    answers = await Inbox.on(bus, SUBJECTS.scheduler_media(SESSION), m.MediaStaged)
    await worker.start()
    yield Stack(bus, engines[0], vision, answers, tmp_path)
    await worker.actor.stop("test ended")


async def test_embeddings_come_from_the_file_where_it_can_be_seen(stack: Stack) -> None:
    (first, one), (second, two) = stack.written(1), stack.written(2, tokens=5)
    staged = await stack.stage(first, second)
    assert (staged.slots, staged.missing) == ([0, 1], [])
    np.testing.assert_array_equal(stack.engine.rows(0, 3), one)
    np.testing.assert_array_equal(stack.engine.rows(1, 5), two)
    assert stack.vision.asked == []


async def test_they_stay_when_the_file_goes(stack: Stack) -> None:
    ref, numbers = stack.written(1)
    await stack.stage(ref)
    Path(ref.path).unlink()
    np.testing.assert_array_equal(stack.engine.rows(0, 3), numbers)


@pytest.mark.parametrize("seen", ["no file", "another's file", "half a file"])
async def test_where_the_file_cannot_be_seen_vision_shares_it(stack: Stack, seen: str) -> None:
    """On another host the path may be nobody's, or somebody else's."""
    ref, numbers = stack.written(1)
    path, data = Path(ref.path), Path(ref.path).read_bytes()
    path.unlink()
    if seen == "another's file":
        path.write_bytes(stack.vision.files[stack.written(2)[0].key])
    elif seen == "half a file":
        path.write_bytes(data[:-1])
    staged = await stack.stage(ref)
    assert (staged.slots, staged.missing) == ([0], [])
    assert stack.vision.asked == [ref.key]
    np.testing.assert_array_equal(stack.engine.rows(0, 3), numbers)


async def test_what_nobody_has_is_missing_and_the_rest_is_ready(stack: Stack) -> None:
    (lost, _), (there, _) = stack.written(1), stack.written(2)
    Path(lost.path).unlink()
    del stack.vision.files[lost.key]
    staged = await stack.stage(lost, there, first=4)
    assert (staged.slots, staged.missing) == ([5], [4])


async def test_embeddings_of_a_vision_instance_that_is_gone_are_missing(stack: Stack) -> None:
    ref, _ = stack.written(1)
    Path(ref.path).unlink()
    staged = await stack.stage(dataclasses.replace(ref, vision_id="vision-9-gone"))
    assert (staged.slots, staged.missing) == ([], [0])


async def test_a_shared_object_that_holds_something_else_is_missing(stack: Stack) -> None:
    ref, _ = stack.written(1)
    Path(ref.path).unlink()
    for wrong in (b"", b"not embeddings", stack.vision.files[stack.written(2)[0].key]):
        stack.vision.files[ref.key] = wrong
        staged = await stack.stage(ref)
        assert (staged.slots, staged.missing) == ([], [0])


async def test_embeddings_of_another_model_are_missing(stack: Stack) -> None:
    ref = m.EmbeddingRef(f"{7:032x}", stack.vision.actor.id, "", 2, WIDTH + 1, "float32")
    data = np.zeros((2, WIDTH + 1), np.float32).tobytes()
    ref = embedding_file.write(stack.folder, m.EncodedMedia("image", ref), data)
    staged = await stack.stage(ref)
    assert (staged.slots, staged.missing) == ([], [0])


async def test_a_rank_that_is_asked_twice_answers_twice_and_works_once(stack: Stack) -> None:
    """The first answer may have been lost."""
    ref, _ = stack.written(1)
    for _ in range(2):
        staged = await stack.stage(ref)
        assert (staged.slots, staged.missing) == ([0], [])
    assert stack.engine.staged == 1


async def test_a_dtype_that_nobody_knows_is_missing_and_ranks_go_on(stack: Stack) -> None:
    ref, _ = stack.written(1)
    staged = await stack.stage(dataclasses.replace(ref, dtype="float8"))
    assert (staged.slots, staged.missing) == ([], [0])
    assert (await stack.stage(ref, first=1)).slots == [1]

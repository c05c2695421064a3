"""The vision service as a process, on a tiny checkpoint and a real server."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared import embedding_file, wire
from shared import messages as m
from shared.bus import NatsBus
from shared.subjects import Subjects
from tests.unit.vision.checkpoints import checkpoint, encoder, picture, processor
from tests.unit.vision.service_stack import Tokenizer

ROOT = Path(__file__).parents[2]
FAMILY = "qwen2_vl"


class Process:
    """`python -m services.vision`, always with the same name."""

    def __init__(self, bus: NatsBus, url: str, memory: Path, model: Path) -> None:
        self._bus = bus
        self._argv = [
            sys.executable, "-m", "services.vision", f"--nats-url={url}", f"--model-path={model}", "--name=vision-0",
            f"--shared-memory-dir={memory}", "--vision-device=cpu", "--vision-threads=1",
        ]  # fmt: skip
        self.child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return when it says that it is ready."""
        ready = asyncio.Event()

        async def heard(data: bytes, _: str) -> None:
            beat = wire.decode(m.Heartbeat, data)
            if self.child is not None and beat.pid == self.child.pid and beat.state == "ready":
                ready.set()

        stop = await self._bus.subscribe(Subjects().heartbeat, heard)
        await self._bus.flush()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.child = await asyncio.create_subprocess_exec(*self._argv, cwd=ROOT, env=environment)
        async with asyncio.timeout(120):
            await ready.wait()
        await stop()

    async def end(self, sig: signal.Signals) -> int:
        assert self.child is not None
        self.child.send_signal(sig)
        async with asyncio.timeout(30):
            return await self.child.wait()


@pytest.fixture
async def process(nats_url: str, nats_bus: NatsBus, tmp_path: Path) -> AsyncIterator[Process]:
    (tmp_path / "memory").mkdir()
    running = Process(nats_bus, nats_url, tmp_path / "memory", checkpoint(FAMILY)[0])
    yield running
    if running.child is not None and running.child.returncode is None:
        await running.end(signal.SIGKILL)


def data_url(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


async def encoded_media(bus: NatsBus) -> float:
    """`rhizome_vision_media_total` of the one instance."""
    (answer,) = await bus.gather(Subjects().metrics, wire.encode(m.Empty()), most=1, timeout_s=10)
    lines = wire.decode(m.MetricsText, answer).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("rhizome_vision_media_total"))


async def test_embeddings_are_the_model_s_and_outlive_a_kill_but_not_a_stop(
    process: Process, nats_bus: NatsBus, tmp_path: Path
) -> None:
    await process.start()
    tokenizer = await Tokenizer(nats_bus).start()
    images = [picture(100, 80, 1), picture(37, 211, 2)]
    first = await tokenizer.encode(*map(data_url, images))
    assert first.error is None
    for image, media in zip(images, first.media, strict=True):
        prepared = processor(FAMILY).prepare(image)
        (wanted,) = encoder(FAMILY).encode([prepared])
        rows = embedding_file.map_rows(media.ref).view(np.float32)
        assert media.grid == prepared.grid
        np.testing.assert_allclose(rows, wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert await encoded_media(nats_bus) == 2

    await process.end(signal.SIGKILL)
    assert embedding_file.map_rows(first.media[0].ref).shape[0] == first.media[0].ref.tokens
    await process.start()
    second = await tokenizer.encode(*map(data_url, images))
    assert [x.ref.path for x in second.media] == [x.ref.path for x in first.media]
    assert second.media[0].ref.vision_id != first.media[0].ref.vision_id
    assert await encoded_media(nats_bus) == 0

    assert await process.end(signal.SIGTERM) == 0
    assert list((tmp_path / "memory").iterdir()) == []


def test_a_text_only_model_is_refused_with_the_reason(nats_url: str, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    done = subprocess.run(
        [sys.executable, "-m", "services.vision", f"--nats-url={nats_url}", f"--model-path={tmp_path}",
         f"--shared-memory-dir={tmp_path / 'memory'}"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "a text-only model, it needs no vision service" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "memory").iterdir()) == []

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from services.vision.batcher import Batch, Batcher
from tests.fakes.vision_model import FakeEncoder, FakePrepared


class Running:
    def __init__(self, encoder: FakeEncoder) -> None:
        self.encoder, self.batches = encoder, list[Batch]()
        self.device = ThreadPoolExecutor(1)
        self.batcher = Batcher(encoder, 10, self.device, self.batches.append)

    async def held_up(self, *items: FakePrepared) -> list[asyncio.Future[np.ndarray]]:
        """Items that arrive while the encoder is busy with one of them."""
        self.encoder.go.clear()
        self.first = asyncio.ensure_future(self.batcher.encode(FakePrepared(1, [], 9.0)))
        assert await asyncio.to_thread(self.encoder.entered.wait, 30)
        rest = [asyncio.ensure_future(self.batcher.encode(item)) for item in items]
        await asyncio.sleep(0)
        assert self.batcher.waiting == len(items)
        return rest


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    made = Running(FakeEncoder())
    loop = asyncio.ensure_future(made.batcher.run())
    await asyncio.sleep(0)
    yield made
    loop.cancel()
    made.encoder.go.set()
    made.device.shutdown()


async def test_rows_are_the_raw_bytes_of_the_embeddings(running: Running) -> None:
    rows = await running.batcher.encode(FakePrepared(3, [1, 1, 3], 7.5))
    assert rows.dtype == np.uint8
    assert rows.view(np.float32).tolist() == [[7.5] * 4] * 3
    running.encoder.dtype = torch.bfloat16
    rows = await running.batcher.encode(FakePrepared(2, [1, 1, 2], 7.5))
    assert rows.shape == (2, 8)
    assert torch.from_numpy(rows).view(torch.bfloat16).tolist() == [[7.5] * 4] * 2


async def test_what_waits_goes_together_up_to_the_limit_in_order(running: Running) -> None:
    rest = await running.held_up(*(FakePrepared(4, [], float(i)) for i in range(5)), FakePrepared(50, [], 5.0))
    running.encoder.go.set()
    rows = await asyncio.gather(*rest)
    assert [float(r.view(np.float32)[0, 0]) for r in rows] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert running.encoder.batches == [1, 2, 2, 1, 1]
    assert [batch.patches for batch in running.batches] == [1, 8, 8, 4, 50]


async def test_one_bad_item_fails_alone(running: Running) -> None:
    rest = await running.held_up(FakePrepared(2, [], 50.0), FakePrepared(2, [], 1.0), FakePrepared(2, [], 60.0))
    running.encoder.refuse_under = 5.0
    running.encoder.go.set()
    good, bad, too = await asyncio.gather(*rest, return_exceptions=True)
    assert isinstance(good, np.ndarray)
    assert isinstance(too, np.ndarray)
    assert isinstance(bad, RuntimeError)


async def test_who_gave_up_is_not_encoded(running: Running) -> None:
    rest = await running.held_up(FakePrepared(2, [], 1.0), FakePrepared(2, [], 2.0))
    rest[0].cancel()
    await asyncio.gather(rest[0], return_exceptions=True)
    running.encoder.go.set()
    await rest[1]
    assert running.encoder.batches == [1, 1]

"""Resources of event loops are closed with the loop, by hand, and when nobody holds them any more."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from functools import partial

from rhizome.lang.loops import PerLoop


async def resource(log: list[str]) -> AsyncGenerator[object, None]:
    log.append("open")
    try:
        yield object()
    finally:
        log.append("closed")


def test_a_loop_that_ends_closes_its_own() -> None:
    log: list[str] = []
    shared = PerLoop(partial(resource, log))

    async def use() -> object:
        first = await shared.get()
        assert await shared.get() is first
        return first

    assert asyncio.run(use()) is not asyncio.run(use())
    assert log == ["open", "closed", "open", "closed"]
    assert len(shared._open) == 1  # the first loop is not held


async def test_it_is_closed_by_hand_and_made_again() -> None:
    log: list[str] = []
    shared = PerLoop(partial(resource, log))
    await shared.get()
    await shared.close()
    await shared.get()
    assert log == ["open", "closed", "open"]


async def test_it_is_closed_when_its_holder_is_gone() -> None:
    log: list[str] = []
    shared = PerLoop(partial(resource, log))
    await shared.get()
    del shared
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)
    assert log == ["open", "closed"]

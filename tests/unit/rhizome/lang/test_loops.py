"""Resources of event loops are closed with the loop, by hand, and when nobody holds them any more."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
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


_FORKING = """
import asyncio, os, signal, sys
import rhizome as rz

@rz.function
def program(s):
    s += rz.gen("a")

backend = rz.FakeBackend(lambda *_: "x")
async def awaited():
    return await (await program.arun(backend=backend)).text()
assert program.run(backend=backend)["a"] == asyncio.run(awaited()) == "x"
child = os.fork()
if not child:
    signal.alarm(20)
assert program.run(backend=backend)["a"] == asyncio.run(awaited()) == "x"
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_programs_run_in_the_child_of_a_fork() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKING], timeout=30, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

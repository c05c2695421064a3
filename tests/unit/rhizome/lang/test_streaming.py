"""Reading while a program runs: from its own function, which must not wait for itself, and from outside."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import rhizome as rz

pytestmark = pytest.mark.timeout(20)


def backend() -> rz.FakeBackend:
    return rz.FakeBackend(lambda *_: " b")


def test_a_streamed_function_reads_what_it_appended_so_far() -> None:
    seen: list[Any] = []

    @rz.function
    def program(s):
        s += "A" + rz.gen("x")
        s.sync()
        seen.extend((s.error(), s.text(), len(s.messages()), s.get_meta_info("x")["completion_tokens"]))
        with pytest.raises(rz.UnknownVariable):
            s.get_meta_info("typo")
        s += " end"

    assert program.run(backend=backend(), stream=True).text() == "A b end"
    assert seen == [None, "A b", 0, 1]


async def test_a_streamed_async_function_reads_what_it_appended_so_far() -> None:
    seen: list[Any] = []

    @rz.function
    async def program(s):
        s += "A" + rz.gen("x")
        await s.sync()
        seen.extend((await s.error(), await s.text(), len(await s.messages())))
        with pytest.raises(rz.UnknownVariable):
            await s.get_meta_info("typo")
        seen.extend(await asyncio.gather(s.text(), s.text()))
        s += " end"

    state = await program.arun(backend=backend(), stream=True)
    assert await state.text() == "A b end"
    assert seen == [None, "A b", 0, "A b", "A b"]
    assert await asyncio.to_thread(lambda: program.run(backend=backend(), stream=True).text()) == "A b end"


async def test_a_plain_function_streamed_from_a_coroutine_reads_its_own_text() -> None:
    @rz.function
    def program(s):
        s += "A" + rz.gen("x")
        s += str(len(s.text()))

    assert await (await program.arun(backend=backend(), stream=True)).text() == "A b3"


def test_a_program_inside_a_program_is_read_to_its_end() -> None:
    """Only a function's own state is read so far; that of another streamed program is waited for."""
    go = threading.Event()

    @rz.function
    def inner(s):
        assert go.wait(10)
        s += "in" + rz.gen("x")
        s += str(len(s.text()))

    @rz.function
    def outer(s):
        state = inner.run(backend=backend(), stream=True)
        s += "out " + state.var("x")
        go.set()
        s += " " + state.text()
        return s.text()

    assert outer.run(backend=backend(), stream=True).text() == "out  b in b4"


@pytest.mark.parametrize("stream", [False, True])
def test_pieces_end_for_the_function_itself_with_what_it_appended(stream: bool) -> None:
    @rz.function
    def program(s):
        s += "A" + rz.gen("x")
        f = s.fork(1)[0]
        assert "".join(f.text_iter()) == "A b"
        assert "".join(s.text_iter("x")) == " b"
        with pytest.raises(rz.UnknownVariable):
            next(s.text_iter("typo"))
        s += "|" + "".join(s.text_iter())

    assert program.run(backend=backend(), stream=stream).text() == "A b|A b"


@pytest.mark.parametrize("stream", [False, True])
async def test_pieces_end_for_an_async_function_too(stream: bool) -> None:
    @rz.function
    async def program(s):
        s += "A" + rz.gen("x")
        s += "|" + "".join([piece async for piece in s.text_async_iter()])

    assert await (await program.arun(backend=backend(), stream=stream)).text() == "A b|A b"


async def test_a_variable_that_is_still_to_come_is_awaited_in_both_spellings() -> None:
    go = asyncio.Event()

    @rz.function
    async def program(s):
        await go.wait()
        s += "A" + rz.gen("x")

    state = await program.arun(backend=backend(), stream=True)
    variable = state["x"]
    go.set()
    assert await asyncio.gather(variable, state["x"], state.get_var("x")) == [" b"] * 3

    state = await program.arun(backend=backend(), stream=True)
    for read in (state["typo"], state.get_var("typo")):
        with pytest.raises(rz.UnknownVariable):
            await read


def test_a_reader_is_woken_by_variables_of_a_join_and_by_those_that_are_set() -> None:
    go, read = threading.Event(), threading.Event()

    @rz.function
    def program(s):
        assert go.wait(10)
        forks = s.fork(2)
        forks += rz.gen("x")
        forks.join()
        s["mine"] = 7
        assert read.wait(10)

    state = program.run(backend=backend(), stream=True)
    go.set()
    assert (state["mine"], state["x"]) == (7, [" b", " b"])
    read.set()


async def test_cancelling_a_streamed_async_program_stops_its_function() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    @rz.function
    async def program(s):
        s += "A" + rz.gen("x")
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    state = await program.arun(backend=rz.FakeBackend(["b"], latency_s=60), stream=True)
    await started.wait()
    state.cancel()
    with pytest.raises(rz.ProgramError, match="cancelled"):
        await state.text()
    assert ended.is_set()
    with pytest.raises(rz.ProgramError, match="cancelled"):
        await state["never"]

    other = await asyncio.to_thread(program.run, backend=rz.FakeBackend(["b"], latency_s=60), stream=True)
    other.cancel()
    assert "cancelled" in str(await asyncio.to_thread(other.error))


async def test_a_streamed_program_cancelled_before_it_starts_ends() -> None:
    @rz.function
    async def program(s):
        s += "never"

    state = await program.arun(backend=backend(), stream=True)
    state.cancel()
    with pytest.raises(rz.ProgramError, match="cancelled"):
        await state.text()
    with pytest.raises(rz.ProgramError, match="cancelled"):
        await state["x"]


async def test_an_async_function_that_cancels_its_own_program_ends() -> None:
    @rz.function
    async def program(s):
        s += "A" + rz.gen("x")
        s.cancel()
        await asyncio.sleep(0)
        return "ended"

    state = await program.arun(backend=rz.FakeBackend(["b"], latency_s=60), stream=True)
    with pytest.raises(rz.ProgramError, match="cancelled"):
        await state.text()
    assert state.ret_value == "ended"


@pytest.mark.parametrize("pending", [False, True])
def test_readers_of_a_streamed_program_learn_what_its_function_raised(pending: bool) -> None:
    @rz.function
    def program(s):
        s += "A"
        if pending:
            s += rz.gen("x")
        raise ValueError("mine")

    state = program.run(backend=rz.FakeBackend(["b"], latency_s=60), stream=True)
    for read in (state.text, lambda: state["x"], lambda: list(state.text_iter("x"))):
        with pytest.raises(rz.ProgramError, match="the program's function failed: mine"):
            read()
    assert isinstance(state.error(), rz.ProgramError)


async def test_a_variable_of_a_program_on_another_loop_can_be_appended() -> None:
    @rz.function
    def plain(s):
        s += rz.gen("x")

    @rz.function
    async def program(s, other):
        s += "got" + other.var("x")

    slow = rz.FakeBackend(lambda *_: " b", latency_s=0.05)
    other = await asyncio.to_thread(plain.run, backend=slow, stream=True)
    assert await (await program(other, backend=backend())).text() == "got b"

"""`async def` programs: the same language on the caller's loop, thousands of states at a time."""

from __future__ import annotations

import asyncio

import pytest

import rhizome as rz


@rz.function
async def tips(s, topic):
    s += "Two tips for " + topic + ".\n"
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Tip {i + 1}:" + rz.gen("tip", stop="\n")
    s += "A:" + forks[0]["tip"] + " B:" + forks[1]["tip"]  # runs ahead: nothing is awaited here
    s += " So" + rz.gen("summary")
    return len(await s["summary"])


async def test_a_program_runs_on_the_callers_loop() -> None:
    backend = rz.FakeBackend({"Tip 1:": " eat\n", "Tip 2:": " run\n", " So": " do."})
    state = await tips("health", backend=backend)
    assert await state.text() == "Two tips for health.\nA: eat B: run So do."
    assert await state["summary"] == " do."
    assert state.ret_value == 4
    assert (await state.get_meta_info("summary"))["completion_tokens"] == 2


def test_an_async_program_can_be_run_without_a_loop() -> None:
    backend = rz.FakeBackend({"Tip 1:": " eat\n", "Tip 2:": " run\n", " So": " do."})
    assert tips.run("health", backend=backend)["summary"] == " do."
    assert [s["summary"] for s in tips.run_batch([("a",), ("b",)], backend=backend)] == [" do.", " do."]


async def test_a_synchronous_program_can_be_awaited() -> None:
    @rz.function
    def program(s):
        s += rz.gen("a")
        return s["a"].upper()

    state = await program.arun(backend=rz.FakeBackend(["x"]))
    assert (await state["a"], state.ret_value) == ("x", "X")


async def test_using_a_variable_without_await_is_an_error_not_a_wrong_branch() -> None:
    @rz.function
    async def program(s):
        s += rz.gen("tool")
        if s["tool"] == "calculator":
            s += "never"

    with pytest.raises(TypeError, match="variable 'tool' is not known yet: await it"):
        await program(backend=rz.FakeBackend(["calculator"]))
    with pytest.raises(TypeError, match="await it"):
        f"{(await tips.arun('x', backend=rz.FakeBackend(lambda *_: 'y')))['summary']}"


async def test_cancelling_the_task_stops_the_calls() -> None:
    backend = rz.FakeBackend(lambda *_: "x", latency_s=60)
    task = asyncio.create_task(tips("health", backend=backend))
    await backend.until_running(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (backend.running, backend.cancelled) == (0, 2)


async def test_streams_are_read_on_this_loop_and_from_another() -> None:
    backend = rz.FakeBackend(lambda *_: " a b c")
    state = await tips.arun("x", backend=backend, stream=True)
    assert [piece async for piece in state.text_async_iter("summary")] == [" a", " b", " c"]

    @rz.function
    def program(s):
        s += "Q" + rz.gen("answer")

    other = await asyncio.to_thread(program.run, backend=backend, stream=True)  # on the background loop
    pieces = [(text, meta) async for text, meta in other.text_async_iter("answer", return_meta_data=True)]
    assert "".join(text for text, _ in pieces) == " a b c"
    assert await state.error() is None


async def test_two_thousand_states_run_on_one_loop_and_leave_no_task() -> None:
    backend = rz.FakeBackend(lambda *_: " x\n", latency_s=0.05)
    before = asyncio.all_tasks()
    states = await tips.arun_batch([{"topic": str(i)} for i in range(2000)], backend=backend)
    assert len(states) == 2000
    assert backend.max_running >= 2000  # all at the same time
    assert backend.count() == 6000
    assert [await s["summary"] for s in states] == [" x\n"] * 2000
    assert asyncio.all_tasks() == before


async def test_a_batch_is_bounded_when_asked() -> None:
    backend = rz.FakeBackend(lambda *_: " x", latency_s=0.001)
    await tips.arun_batch([{"topic": "t"}] * 20, backend=backend, concurrency=3)
    assert backend.max_running <= 6  # three programs of two branches

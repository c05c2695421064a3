"""How programs run: ahead, in parallel, in order; where errors surface; what cancelling leaves behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

import rhizome as rz
from rhizome.lang.backends.base import Completion, Delta, Usage
from rhizome.lang.loops import background_loop


def test_gen_returns_at_once_and_reading_waits() -> None:
    seen: list[int] = []
    backend = rz.FakeBackend(["one", "two"], latency_s=0.02)

    @rz.function
    def program(s):
        s += rz.gen("a") + " " + rz.gen("b")
        seen.append(backend.count())  # the second call cannot have been made before the first has ended
        assert s["b"] == "two"
        seen.append(backend.count())

    assert program.run(backend=backend).text() == "one two"
    assert seen[0] <= 1
    assert seen[1] == 2


def test_branches_run_at_the_same_time() -> None:
    backend = rz.FakeBackend(lambda *_: "x", latency_s=0.05)

    @rz.function
    def program(s):
        forks = s.fork(8)
        forks += rz.gen("a")
        forks.join()

    assert program.run(backend=backend)["a"] == ["x"] * 8
    assert backend.max_running == 8


def test_an_error_surfaces_where_it_is_read_with_the_programs_line() -> None:
    backend = rz.FakeBackend([rz.BackendError("no such model", 404)])

    @rz.function
    def program(s):
        s += "Q:" + rz.gen("answer")
        s += rz.gen("later")
        return "went on"

    state = program.run(backend=backend)
    assert state.ret_value == "went on"
    with pytest.raises(
        rz.ProgramError, match=r"test_execution.py:\d+ in program: gen\('answer'\) failed: no such"
    ) as e:
        state["answer"]
    assert isinstance(e.value.__cause__, rz.BackendError)
    with pytest.raises(rz.ProgramError, match=r"gen\('answer'\)"):
        state["later"]
    with pytest.raises(rz.ProgramError):
        state.text()
    assert isinstance(state.error(), rz.ProgramError)


def test_a_failing_branch_is_named_and_the_others_finish() -> None:
    backend = rz.FakeBackend(lambda prompt, _: rz.BackendError("broken") if "1" in prompt.text else "fine")

    @rz.function
    def program(s):
        forks = s.fork(3)
        for i, f in enumerate(forks):
            f += f"branch {i}:" + rz.gen("a")
        forks.join()
        return [forks[0]["a"], forks[2]["a"]]

    state = program.run(backend=backend)
    assert state.ret_value == ["fine", "fine"]
    with pytest.raises(rz.ProgramError, match="in fork branch 1 failed: broken"):
        state["a"]


def test_a_function_s_own_exception_is_raised_and_stops_its_generations() -> None:
    backend = rz.FakeBackend(lambda *_: "x", latency_s=60)

    @rz.function
    def program(s):
        s += rz.gen("a")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        program.run(backend=backend)
    assert backend.running == 0


def test_an_unknown_variable_says_what_there_is() -> None:
    @rz.function
    def program(s):
        s += rz.gen("a")
        return s["b"]

    with pytest.raises(rz.UnknownVariable, match="no variable 'b'; there are: a"):
        program.run(backend=rz.FakeBackend(["x"]))


def test_cancelling_stops_calls_and_readers() -> None:
    backend = rz.FakeBackend(lambda *_: "x", latency_s=60)
    reading = threading.Event()

    @rz.function
    def program(s):
        forks = s.fork(4)
        forks += rz.gen("a")
        reading.set()
        return forks[3]["a"]

    state = program.run(backend=backend, stream=True)
    assert reading.wait(10)
    while backend.running < 4:
        background_loop().call_soon_threadsafe(lambda: None)
    state.cancel()
    with pytest.raises(rz.ProgramError, match="cancelled"):
        list(state.text_iter())
    assert (backend.running, backend.cancelled) == (0, 4)


def test_a_thread_interrupted_while_it_waits_leaves_nothing_running() -> None:
    """What Ctrl-C does: an exception out of a blocking read."""
    backend = rz.FakeBackend(lambda *_: "x", latency_s=60)

    @rz.function
    def program(s):
        s += rz.gen("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program.run(backend=backend)
    assert backend.running == 0


def test_a_batch_raises_a_function_s_exception_after_the_others_finished() -> None:
    backend = rz.FakeBackend(lambda *_: "x")
    finished: list[int] = []

    @rz.function
    def program(s, i):
        s += rz.gen("a")
        if i == 1:
            raise ValueError("mine")
        finished.append(s["a"])

    with pytest.raises(ValueError, match="mine"):
        program.run_batch([{"i": i} for i in range(5)], backend=backend)
    assert len(finished) == 4


def test_generator_style_gives_states_before_all_have_run() -> None:
    backend = rz.FakeBackend(lambda *_: "x")

    @rz.function
    def program(s, i):
        s += str(i) + rz.gen("a")

    states = program.run_batch([(i,) for i in range(50)], backend=backend, num_threads=2, generator_style=True)
    assert next(states).text() == "0x"
    assert backend.count() < 50
    assert [s.text() for s in states] == [f"{i}x" for i in range(1, 50)]


def test_no_thread_and_no_task_is_left_by_a_batch() -> None:
    backend = rz.FakeBackend(lambda *_: "x")

    @rz.function
    def program(s):
        s += rz.gen("a")

    program.run_batch([{}] * 20, backend=backend, num_threads=4)
    assert not [t for t in threading.enumerate() if t.name.startswith("rhizome-program")]
    asyncio.run_coroutine_threadsafe(_no_tasks(), background_loop()).result(10)


async def _no_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others


def test_states_have_scopes_copies_and_values_of_their_own() -> None:
    backend = rz.FakeBackend(["x", "y"])

    @rz.function
    def program(s):
        with s.var_scope("both"):
            s += "a" + rz.gen("g") + "b"
        with s.copy() as c:
            c += rz.gen("inside")
        s["mine"] = 7
        s += s.var("both")

    state = program.run(backend=backend)
    assert (state["both"], state["inside"], state["mine"], state.text()) == ("axb", ["y"], 7, "axbaxb")


def test_join_appends_the_branches_texts() -> None:
    backend = rz.FakeBackend(lambda prompt, _: prompt.text[-1].upper())

    @rz.function
    def program(s):
        s += "start "
        forks = s.fork(3)
        forks += lambda i: "abc"[i] + rz.gen("g")
        forks.join("concate_and_append")
        s += rz.gen("end")

    assert program.run(backend=backend).text() == "start aAbBcCC"


def test_a_joined_branch_takes_no_more() -> None:
    @rz.function
    def program(s):
        forks = s.fork(2)
        forks.join()
        forks[0].__iadd__("more")

    with pytest.raises(rz.LanguageError, match="was joined"):
        program.run(backend=rz.FakeBackend([]))


def test_what_cannot_be_appended_and_unknown_arguments_are_told_at_once() -> None:
    @rz.function
    def program(s, a):
        s += 5

    with pytest.raises(rz.LanguageError, match="cannot append int 5"):
        program.run("x", backend=rz.FakeBackend([]))
    with pytest.raises(rz.LanguageError, match="no argument 'temprature'"):
        program.run("x", temprature=0, backend=rz.FakeBackend([]))
    with pytest.raises(rz.LanguageError, match="no backend"):
        program.run("x")
    with pytest.raises(rz.LanguageError, match="first argument of a program is s"):
        rz.function(lambda t: None)


@pytest.fixture(autouse=True)
def _no_default_backend():
    rz.set_default_backend(None)
    yield
    rz.set_default_backend(None)


def test_whatever_a_backend_raises_reaches_the_reader() -> None:
    class Broken(rz.FakeBackend):
        async def generate(self, prompt, params, *, with_tokens=False):
            raise ZeroDivisionError("a bug of a backend")

    @rz.function
    def program(s):
        s += "Q:" + rz.gen("a")

    with pytest.raises(rz.ProgramError, match="a bug of a backend"):
        program.run(backend=Broken([]))["a"]


@pytest.mark.timeout(20)
def test_a_backend_that_cancels_its_own_call_leaves_no_reader_waiting() -> None:
    class Cancels(rz.FakeBackend):
        async def generate(self, prompt, params, *, with_tokens=False):
            raise asyncio.CancelledError

    @rz.function
    def program(s):
        s += "Q:" + rz.separate_reasoning(rz.gen("a"), "qwen3") + rz.gen("b")

    state = program.run(backend=Cancels([]))
    for name in ("a", "a_reasoning_content", "b"):
        with pytest.raises(rz.ProgramError, match=r"gen\('a'\) failed"):
            state[name]


def test_several_samples_have_no_regular_expression_that_ends_them() -> None:
    @rz.function
    def program(s):
        s += rz.gen("a", n=2, stop_regex="[.]")

    backend = rz.FakeBackend(lambda *_: "x. y")
    with pytest.raises(rz.ProgramError, match="stop_regex ends one sample: leave out n") as e:
        program.run(backend=backend)["a"]
    assert isinstance(e.value.__cause__, rz.Unsupported)
    assert backend.count() == 0


def test_a_generation_ended_by_a_regular_expression_counts_the_tokens_told_so_far() -> None:
    class Told(rz.FakeBackend):
        async def stream(self, prompt, params, *, with_tokens=False):
            for i in range(1, 4):
                yield Delta(f" {i}", {"prompt_tokens": 5, "completion_tokens": i})

    @rz.function
    def program(s):
        s += rz.gen("a", stop_regex="2")

    state = program.run(backend=Told([]))
    assert state["a"] == " 1 "
    assert (state.report()["prompt_tokens"], state.report()["completion_tokens"]) == (5, 2)


def test_what_may_call_tools_is_asked_in_one_piece_even_when_streamed() -> None:
    calls = [{"name": "look"}]

    class Tools(rz.FakeBackend):
        async def generate(self, prompt, params, *, with_tokens=False):
            return [Completion(" so. it is", {"tool_calls": calls}, Usage(3, 2, 0))]

    @rz.function
    def program(s):
        s += "Q" + rz.gen("a", tools=[{"type": "function"}]) + rz.gen("b", tools=[{}], stop_regex="[.]")

    state = program.run(backend=Tools([]), stream=True)
    assert "".join(state.text_iter()) == "Q so. it is so"
    assert [state.get_meta_info(name)["tool_calls"] for name in "ab"] == [calls] * 2
    assert state.report()["completion_tokens"] == 4


def test_thoughts_of_a_generation_without_a_name_are_no_variable() -> None:
    @rz.function
    def program(s):
        s += rz.separate_reasoning(rz.gen(), "qwen3")

    state = program.run(backend=rz.FakeBackend(["<think>hm</think>yes"]))
    assert state.text() == "yes"
    assert "None_reasoning_content" not in state


def test_a_scope_inside_one_of_the_same_name_says_so() -> None:
    @rz.function
    def program(s):
        with s.var_scope("v"):
            s += "a"
            with s.var_scope("v"):
                s += "b"

    with pytest.raises(rz.ProgramError, match=r"var_scope\('v'\) inside var_scope\('v'\): use another name"):
        program.run(backend=rz.FakeBackend([]))["v"]

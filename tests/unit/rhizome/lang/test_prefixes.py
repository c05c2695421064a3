"""Constant prefixes: found by tracing, sent ahead once, and only where it is worth it."""

from __future__ import annotations

import asyncio

import pytest

import rhizome as rz
from rhizome.lang.chat_template import TEMPLATES
from rhizome.lang.ir import StopTracing
from rhizome.lang.tracer import constant_prefix

RULES = "Answer each question with one word, without any explanation, as in these examples. " * 2


@rz.function
def few_shot(s, question, style="plain"):
    s += rz.system(RULES)
    s += rz.user(f"Be {style}. " + question)
    s += rz.assistant(rz.gen("a"))


def test_the_prefix_ends_where_an_argument_begins() -> None:
    template = TEMPLATES["chatml"]
    assert (
        constant_prefix(few_shot, template)
        == f"<|im_start|>system\n{RULES}<|im_end|>\n<|im_start|>user\n"[: -len("<|im_start|>user\n")]
    )
    bound = few_shot.bind(style="short")
    assert constant_prefix(bound, template).endswith("<|im_start|>user\nBe short. ")


@pytest.mark.parametrize(
    ("body", "prefix"),
    [
        (lambda s, x: s.__iadd__("abc" + rz.gen("g") + "def"), "abc"),
        (lambda s, x: s.__iadd__("abc").__iadd__(x), "abc"),
        (lambda s, x: s.__iadd__("abc").__iadd__("d" if x > 3 else "e"), "abc"),
        (lambda s, x: s.__iadd__("abc").__iadd__(x.upper()), "abc"),
        (lambda s, x: s.__iadd__("abc").__iadd__(str(1 + len(x))), "abc"),
        (lambda s, x: s.__iadd__("abc").fork(2), "abc"),
        (lambda s, x: s.__iadd__("abc" + rz.image(b"")), "abc"),
    ],
)
def test_what_only_a_run_knows_ends_the_prefix(body, prefix) -> None:
    assert constant_prefix(rz.function(body), TEMPLATES["default"]) == prefix


def test_an_async_program_is_traced_up_to_its_first_await() -> None:
    @rz.function
    async def program(s, x):
        s += "abc"
        s += rz.gen("g")
        await s["g"]

    assert constant_prefix(program, TEMPLATES["default"]) == "abc"


def test_tracing_runs_no_program_and_forgives_what_a_placeholder_breaks() -> None:
    @rz.function
    def inner(s):
        s += "inner" + rz.gen("i")

    @rz.function
    async def ainner(s):
        s += "inner" + rz.gen("i")

    @rz.function
    def nested(s, q):
        s += RULES
        s += inner.run()["i"] + rz.gen("a")

    @rz.function
    def strict(s, q):
        s += RULES
        assert isinstance(q, str)
        s += q + rz.gen("a")

    @rz.function
    async def anested(s, q):
        s += RULES
        s += (await (await ainner.arun())["i"]) + rz.gen("a")

    backend = rz.FakeBackend(lambda *_: "x")
    entries = [{"q": "1"}, {"q": "2"}]
    rz.set_default_backend(backend)
    try:
        assert [s["a"] for s in nested.run_batch(entries)] == ["x", "x"]
        assert backend.count() == 4
        assert [s["a"] for s in strict.run_batch(entries)] == ["x", "x"]
        asyncio.run(asyncio.wait_for(anested.arun_batch(entries), 10))
        assert backend.count() == 10
    finally:
        rz.set_default_backend(None)
    assert backend.prefixes == [RULES] * 3


def test_a_batch_sends_the_prefix_once_and_first() -> None:
    backend = rz.FakeBackend(lambda *_: "x", chat_template="chatml")
    few_shot.run_batch([{"question": str(i)} for i in range(5)], backend=backend)
    assert backend.prefixes == [f"<|im_start|>system\n{RULES}<|im_end|>\n"]
    assert backend.calls[0].kind == "cache_prefix"
    few_shot.run_batch([{"question": "one alone"}], backend=backend)
    assert len(backend.prefixes) == 1


def test_hints_are_left_out_for_short_prefixes_and_where_they_are_off() -> None:
    @rz.function
    def short(s, question):
        s += "Q:" + question + rz.gen("a")

    backend = rz.FakeBackend(lambda *_: "x")
    short.run_batch([{"question": "1"}, {"question": "2"}], backend=backend)
    assert backend.prefixes == []
    backend.prefix_hints = False
    assert few_shot.cache(backend) == 0
    backend.prefix_hints = True
    assert few_shot.cache(backend) == len(backend.prefixes[0])


def test_a_fork_sends_its_text_once_and_not_what_was_just_generated() -> None:
    @rz.function
    def program(s):
        s += RULES
        s += rz.gen("start")
        first = s.fork(2)
        first += rz.gen("a")
        s += RULES
        second = s.fork(2)
        second += rz.gen("b")

    backend = rz.FakeBackend(lambda *_: "x")
    state = program.run(backend=backend)
    assert backend.prefixes == [RULES + "x" + RULES]
    assert state.report()["hints"] == 1


def test_a_hint_that_fails_is_only_a_hint() -> None:
    class Refusing(rz.FakeBackend):
        async def cache_prefix(self, prompt):
            raise rz.BackendError("full", 503)

    @rz.function
    def program(s):
        s += RULES
        forks = s.fork(2)
        forks += rz.gen("a")
        forks.join()

    assert program.run(backend=Refusing(lambda *_: "x"))["a"] == ["x", "x"]
    states = few_shot.run_batch([{"question": "1"}, {"question": "2"}], backend=Refusing(lambda *_: "x"))
    assert [s["a"] for s in states] == ["x", "x"]


def test_trace_shows_the_nodes_without_a_model() -> None:
    backend = rz.FakeBackend([])
    traced = few_shot.trace(backend=backend)
    kinds = [type(node).__name__ for node in traced.flatten_nodes()]
    assert kinds[:3] == ["RoleBegin", "ConstantText", "RoleEnd"]
    assert kinds[-2:] == ["Gen", "RoleEnd"]
    assert "Gen('a')" in traced.print_graph()
    assert backend.calls == []


def test_a_fork_is_traced_as_it_runs() -> None:
    @rz.function
    def program(s, count):
        forks = s.fork(2)
        forks += "xyz"
        forks += rz.gen("a")
        forks += lambda i: f"branch {i}"
        forks += ["left", "right"]
        forks[0] += "!"
        forks.join()

    traced = program.trace(backend=rz.FakeBackend([]))
    assert len(traced.children) == 2
    kinds = [[getattr(n, "value", None) or n.name for n in child.nodes] for child in traced.children]
    assert kinds == [["xyz", "a", "branch 0", "left", "!"], ["xyz", "a", "branch 1", "right"]]


def test_a_number_that_only_a_run_knows_ends_the_trace() -> None:
    @rz.function
    def program(s, count):
        s += "abc"
        for _ in range(count):
            s += "d"

    with pytest.raises(StopTracing):
        program.trace(backend=rz.FakeBackend([]))

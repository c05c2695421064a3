"""Compiling: shared in flight, cached, bounded, in two lanes; and the process that may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from services.scheduler.grammar.compiler import Compiler
from services.scheduler.grammar.sandbox import CompileTimeout, Sandbox
from services.scheduler.grammar.sources import llguidance_source
from services.scheduler.grammar.vocabulary import Vocabulary
from shared.errors import InvalidRequest, Overloaded
from shared.grammar import GrammarSpec
from tests.unit.scheduler.grammar.tiny import STOPS, follow, matches, vocabulary

BIG = GrammarSpec("json_schema", json.dumps({"enum": [f"value number {i} of many" for i in range(4000)]}))


def regex(text: str) -> GrammarSpec:
    return GrammarSpec("regex", text)


class Lane:
    """Compiles at once, or when told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.timeouts: list[float] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.too_slow: set[str] = set()
        self.started = asyncio.Event()

    async def compile(self, spec: GrammarSpec, backend: str, timeout_s: float) -> bytes:
        self.asked.append(spec.source)
        self.timeouts.append(timeout_s)
        self.started.set()
        if spec.source in self.gates:
            await self.gates[spec.source].wait()
        if spec.source in self.too_slow and timeout_s <= 1:
            raise CompileTimeout("too slow", param=spec.kind)
        return llguidance_source(spec, {}).encode()

    async def close(self) -> None:
        pass


class Lanes:
    """The lanes of one compiler."""

    def __init__(self) -> None:
        self.all: list[Lane] = []

    def __call__(self, vocabulary: Vocabulary, memory_bytes: int) -> Lane:
        self.all.append(Lane())
        return self.all[-1]


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Compiler]]:
    made: list[Compiler] = []

    def new(**options: object) -> Compiler:
        made.append(Compiler(vocabulary(), **options))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for compiler in made:
        await compiler.close()


async def test_equal_specs_in_flight_share_one_job_and_later_ones_the_result(make: Callable[..., Compiler]) -> None:
    lanes = Lanes()
    compiler = make(workers=1, new_sandbox=lanes)
    plain, without = regex("ab"), GrammarSpec("regex", "ab", jump_forward=False)
    first, second, third = await asyncio.gather(*(compiler.compile(s) for s in (plain, plain, without)))
    assert first is second is third
    assert await compiler.compile(plain) is first
    assert lanes.all[0].asked == ["ab"]


async def test_a_caller_that_is_cancelled_leaves_the_job_to_the_others(make: Callable[..., Compiler]) -> None:
    lanes = Lanes()
    compiler = make(workers=1, new_sandbox=lanes)
    lanes.all[0].gates["ab"] = asyncio.Event()
    one, other = (asyncio.create_task(compiler.compile(regex("ab"))) for _ in range(2))
    await lanes.all[0].started.wait()
    one.cancel()
    lanes.all[0].gates["ab"].set()
    assert matches(await other, "ab")
    assert one.cancelled()


async def test_a_fault_is_remembered(make: Callable[..., Compiler]) -> None:
    lanes = Lanes()
    compiler = make(workers=1, new_sandbox=lanes)
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="unclosed") as caught:
            await compiler.compile(regex("(a"))
        assert caught.value.param == "regex"
    assert lanes.all[0].asked == ["(a"]


async def test_more_grammars_than_may_wait_are_refused(make: Callable[..., Compiler]) -> None:
    lanes = Lanes()
    compiler = make(workers=1, max_waiting=2, new_sandbox=lanes)
    lanes.all[0].gates["a1"] = asyncio.Event()
    running = [asyncio.create_task(compiler.compile(regex(f"a{i}"))) for i in (1, 2)]
    await lanes.all[0].started.wait()
    with pytest.raises(Overloaded, match="2 grammars wait"):
        await compiler.compile(regex("a3"))
    joined = asyncio.create_task(compiler.compile(regex("a2")))
    lanes.all[0].gates["a1"].set()
    await asyncio.gather(*running, joined)
    assert matches(await compiler.compile(regex("a3")), "a3")


async def test_quick_grammars_pass_a_slow_one(make: Callable[..., Compiler]) -> None:
    lanes = Lanes()
    compiler = make(workers=2, new_sandbox=lanes)
    slow = regex("b" * 20 + "|a" * 10_000)
    quick_lane, slow_lane = lanes.all
    slow_lane.gates[slow.source] = asyncio.Event()
    waiting = asyncio.create_task(compiler.compile(slow))
    await slow_lane.started.wait()
    for i in range(3):
        assert matches(await compiler.compile(regex(f"a{i}")), f"a{i}")
    assert quick_lane.asked == ["a0", "a1", "a2"]
    slow_lane.gates[slow.source].set()
    await waiting


async def test_a_quick_grammar_that_takes_too_long_moves_to_the_slow_lane(make: Callable[..., Compiler]) -> None:
    lanes = Lanes()
    compiler = make(workers=2, timeout_s=7.0, new_sandbox=lanes)
    for lane in lanes.all:
        lane.too_slow.add("ab")
    assert matches(await compiler.compile(regex("ab")), "ab")
    assert lanes.all[0].timeouts == [1.0]
    assert lanes.all[1].timeouts == [7.0]


async def test_the_cache_drops_what_was_not_used_for_longest(make: Callable[..., Compiler]) -> None:
    lanes = Lanes()
    compiler = make(workers=1, cache_bytes=3 * 70_000, new_sandbox=lanes)
    for source in ("a1", "a2", "a3", "a1", "a4", "a1", "a2"):
        await compiler.compile(regex(source))
    assert lanes.all[0].asked == ["a1", "a2", "a3", "a4", "a2"]


async def test_close_cancels_who_still_waits(make: Callable[..., Compiler]) -> None:
    lanes = Lanes()
    compiler = make(workers=1, new_sandbox=lanes)
    lanes.all[0].gates["ab"] = asyncio.Event()
    waiting = asyncio.create_task(compiler.compile(regex("ab")))
    await lanes.all[0].started.wait()
    await compiler.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# With real processes.
async def test_a_process_compiles_every_kind(make: Callable[..., Compiler]) -> None:
    compiler = make(workers=1)
    sources = {
        GrammarSpec("json_object"): '{"a":1}',
        GrammarSpec("json_schema", '{"type":"integer"}'): "5",
        regex("a+"): "aa",
        GrammarSpec("ebnf", 'root ::= "(" root ")" | "x"'): "(x)",
        GrammarSpec("choice", '["yes","no"]'): "no",
        GrammarSpec("structural_tag", '{"format":{"type":"const_string","value":"hi"}}'): "hi",
    }
    for spec, text in sources.items():
        grammar = await compiler.compile(spec)
        assert grammar.backend == "llguidance"
        assert matches(grammar, text)
    with pytest.raises(InvalidRequest, match="at /properties/a/not"):
        await compiler.compile(GrammarSpec("json_schema", '{"properties":{"a":{"not":{}}}}'))
    state = (await compiler.compile(regex("ab"))).start(STOPS)
    assert follow(state, "ab")


async def test_a_process_that_takes_too_long_is_killed_and_the_next_grammar_gets_a_new_one() -> None:
    sandbox = Sandbox(vocabulary(), 1 << 30)
    try:
        await sandbox.compile(regex("a"), "llguidance", 10.0)
        before = sandbox.pid
        with pytest.raises(CompileTimeout, match=r"takes longer than 0\.001 s") as caught:
            await sandbox.compile(BIG, "llguidance", 0.001)
        assert caught.value.param == "json_schema"
        assert sandbox.pid is None
        assert before is not None
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
        assert await sandbox.compile(regex("a"), "llguidance", 10.0)
        assert sandbox.pid not in (None, before)
    finally:
        await sandbox.close()


async def test_a_process_that_somebody_else_killed_is_replaced() -> None:
    sandbox = Sandbox(vocabulary(), 1 << 30)
    try:
        await sandbox.compile(regex("a"), "llguidance", 10.0)
        assert sandbox.pid is not None
        os.kill(sandbox.pid, signal.SIGKILL)
        assert await sandbox.compile(regex("b"), "llguidance", 10.0)
    finally:
        await sandbox.close()


async def test_a_grammar_that_needs_too_much_memory_is_refused() -> None:
    sandbox = Sandbox(vocabulary(), 1 << 20)
    try:
        with pytest.raises(InvalidRequest, match="too much memory"):
            await sandbox.compile(BIG, "llguidance", 20.0)
    finally:
        await sandbox.close()
    assert sandbox.pid is None

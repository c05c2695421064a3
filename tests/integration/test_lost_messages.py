"""Whatever message the bus loses, a request ends soon, with its exact tokens or a clear error, and leaves nothing.

Gateway, tokenizer and scheduler are real and talk over a bus that loses what the test chooses; the worker is scripted.
Their clock is the test's: it moves when nothing else does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from services.gateway.config import GatewayConfig
from services.gateway.service import GatewayService
from services.scheduler.config import SchedulerConfig
from services.scheduler.service import SchedulerService
from services.tokenizer.config import TokenizerConfig
from services.tokenizer.encoder import Encoder
from services.tokenizer.model import load_model
from services.tokenizer.service import Limits, TokenizerService
from shared import messages as m
from shared import wire
from shared.bus import Bus, Handler, LocalBus
from shared.messages.generation import RUNNING
from tests.fakes.clock import Clock
from tests.fakes.engine import expected_tokens
from tests.fakes.service_plane import Worker, actor_on, kill, until
from tests.unit.tokenizer import tiny

VOCAB, PROMPT, COUNT = tiny.byte_level().get_vocab_size(), [5, 6, 7, 8], 40
EXPECTED = expected_tokens(PROMPT, COUNT, VOCAB)
TICK_S = 0.5
SOON_S = 12.0
"""Fake seconds within which a request must have ended: a few rounds of ledgers."""
QUIET_LOOKS = 4
_BACKGROUND = (".engines", ".heartbeat")


class LossyBus:
    """A bus that loses each message that `lose` picks. Loses nothing at first."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.lose: Callable[[str, bytes], bool] = lambda *_: False
        self.on_publish: Callable[[str], None] = lambda _: None
        self.lost: list[str] = []
        self.published = 0
        """Messages, those that are sent all the time left out."""
        self.max_payload_bytes = bus.max_payload_bytes
        self.request, self.gather, self.flush = bus.request, bus.gather, bus.flush
        self.announce, self.close = bus.announce, bus.close
        self.put_object, self.get_object, self.delete_object = bus.put_object, bus.get_object, bus.delete_object

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        self.published += not subject.endswith(_BACKGROUND)
        self.on_publish(subject)
        if self.lose(subject, data):
            self.lost.append(subject)
        else:
            await self._bus.publish(subject, data, reply)

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], Awaitable[None]]:
        return await self._bus.subscribe(subject, handler, queue)


def nth(
    verb: str, cls: type, n: int = 1, fits: Callable[[Any], bool] = lambda _: True, subject: str = ""
) -> Callable[[str, bytes], bool]:
    """Picks one message: the n-th of those that fit, on subjects that end with `verb` and have `subject` in them."""
    seen = 0

    def pick(to: str, data: bytes) -> bool:
        nonlocal seen
        fitting = to.endswith(verb) and subject in to and fits(wire.decode(cls, data))
        seen += fitting
        return fitting and seen == n

    return pick


def gives(batch: m.TokenBatch) -> bool:
    return bool(batch.counts.sum()) and bool((batch.finish == RUNNING).all())


def ends(batch: m.TokenBatch) -> bool:
    return bool((batch.finish != RUNNING).any())


def is_last(deltas: m.TextDeltas) -> bool:
    return any(d.finish_reason for d in deltas.deltas)


class Stack:
    """Everything between a client and a scripted worker."""

    def __init__(self, folder: Path, depth: int, accept_timeout_s: float) -> None:
        self.clock = Clock()
        self.bus = LossyBus(LocalBus())
        self.worker = Worker(self.bus, vocab_size=VOCAB, context_length=128)
        self.scheduler = SchedulerService(
            actor_on(self.bus, "scheduler"), SchedulerConfig(pipeline_depth=depth), self.clock
        )
        self.encoder = Encoder(threads=1, max_pending=2)
        model = load_model(TokenizerConfig(model_path=str(folder)))
        self.tokenizer_actor = actor_on(self.bus, "tokenizer")
        self.tokenizer = TokenizerService(self.tokenizer_actor, model, self.encoder, Limits(100), self.clock)
        config = GatewayConfig(port=0, accept_timeout_s=accept_timeout_s)
        self.gateway = GatewayService(actor_on(self.bus, "gateway"), config)
        self.session = aiohttp.ClientSession()

    async def start(self) -> None:
        await self.gateway.start()
        await self.scheduler.start()
        await self.tokenizer.start()
        await self.worker.start()
        peers = self.gateway.peers
        await until(lambda: bool(peers.of("tokenizer")) and any(b.engines_ready for b in peers.of("scheduler")))

    async def stop(self) -> None:
        await self.session.close()
        await self.gateway.stop()
        for actor in (self.tokenizer_actor, self.scheduler._actor, self.worker.actor):
            await kill(actor)
        self.encoder.close()
        await self.bus.close()

    def generate(self, *, stream: bool = False) -> asyncio.Task[tuple[int, bytes]]:
        async def post() -> tuple[int, bytes]:
            async with self.posted(stream=stream) as response:
                return response.status, await response.read()

        return asyncio.ensure_future(post())

    def posted(self, *, stream: bool) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        body = {
            "input_ids": PROMPT, "stream": stream,
            "sampling_params": {"max_new_tokens": COUNT, "temperature": 0, "ignore_eos": True},
        }  # fmt: skip
        return self.session.post(f"http://127.0.0.1:{self.gateway.port}/generate", json=body)

    async def pass_time(self, done: Callable[[], bool], *, most_s: float = SOON_S, step_s: float = TICK_S) -> None:
        """Let time pass, whenever nothing else happens, until `done`."""
        end_s = self.clock.now_s + most_s
        while True:
            await self._quiet(done)
            if done():
                return
            assert self.clock.now_s < end_s, f"not done after {most_s} s"
            self.clock.now_s += step_s
            await self.scheduler.tick()
            self.tokenizer.tick()

    async def _quiet(self, done: Callable[[], bool]) -> None:
        """Wait until nothing was sent for a few looks; announcements of the worker get through meanwhile."""
        looks, before = 0, -1
        while looks < QUIET_LOOKS and not done():
            looks = looks + 1 if self.bus.published == before else 0
            before = self.bus.published
            await asyncio.sleep(0.004)

    def left_nothing(self) -> bool:
        """No row, page, request or stream is held anywhere."""
        scheduler = self.scheduler.scheduler
        value = self.tokenizer_actor.registry.get_sample_value
        held = [e.pool.private_pages + e.pool.cache.protected_pages for e in scheduler.engines.values()]
        return (scheduler.idle and scheduler.running_reqs == 0 and held == [0]
                and value("rhizome_num_streams") == 0 and len(self.gateway.table) == 0)  # fmt: skip

    def sessions(self) -> set[str]:
        return {plan.session for plan in self.worker.plans}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny-model")


@pytest.fixture
async def stack(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    options = getattr(request, "param", {})
    stack = Stack(folder, options.get("depth", 2), options.get("accept_timeout_s", 30.0))
    await stack.start()
    yield stack
    await stack.stop()


Choice = tuple[Any, ...]
"""Arguments of `nth`."""
PLANS_AND_ANSWERS: dict[str, Choice] = {
    "the first plan": (".plan", m.StepPlan, 1),
    "a plan": (".plan", m.StepPlan, 7),
    "the last plan": (".plan", m.StepPlan, COUNT),
    "the first answer": (".result", m.StepResult, 1),
    "an answer": (".result", m.StepResult, 7),
    "the last answer": (".result", m.StepResult, COUNT),
}
TOKENS_AND_DELTAS: dict[str, Choice] = {
    "some tokens": (".tokens", m.TokenBatch, 7, gives),
    "the last tokens": (".tokens", m.TokenBatch, 1, ends),
    "a delta": (".deltas", m.TextDeltas, 7, lambda d: bool(d.deltas)),
    "the last delta": (".deltas", m.TextDeltas, 1, is_last),
}


@pytest.mark.parametrize("stack", [{"depth": 1}, {"depth": 2}, {"depth": 3}], indirect=True, ids=str)
@pytest.mark.parametrize("what", PLANS_AND_ANSWERS)
async def test_a_lost_plan_or_answer_costs_a_pause_and_no_token(stack: Stack, what: str) -> None:
    stack.bus.lose = nth(*PLANS_AND_ANSWERS[what])
    asking = stack.generate()
    await stack.pass_time(asking.done)
    status, body = await asking
    assert (status, output_ids(body)) == (200, EXPECTED)
    await stack.pass_time(stack.left_nothing)
    assert len(stack.bus.lost) == 1
    assert len(stack.sessions()) <= 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("what", TOKENS_AND_DELTAS)
async def test_lost_tokens_or_deltas_end_the_request_with_a_clear_error(stack: Stack, what: str, stream: bool) -> None:
    stack.bus.lose = nth(*TOKENS_AND_DELTAS[what])
    asking = stack.generate(stream=stream)
    await stack.pass_time(asking.done)
    status, body = await asking
    if stack.bus.lost:
        assert status == (200 if stream else 503)  # a stream has begun by then: an event in it tells
        assert b'"code":"unavailable"' in body
        assert b"lost" in body
    else:
        assert (what, stream) == ("a delta", False)  # there is but one
    await stack.pass_time(stack.left_nothing)
    assert len(stack.sessions()) == 1


@pytest.mark.parametrize("verb", ["tokenizer-abort", "scheduler-abort"])
async def test_a_lost_abort_is_repeated(stack: Stack, verb: str) -> None:
    service = verb.removesuffix("-abort")
    stack.bus.lose = nth(".abort", m.Abort if service == "tokenizer" else m.AbortHandles, 1, subject=f".{service}.")
    stack.bus.on_publish = lambda s: stack.worker.open.clear() if s.endswith(".deltas") else None
    async with stack.posted(stream=True) as response:
        await response.content.readany()
        response.close()
    await stack.pass_time(lambda: stack.scheduler.scheduler.idle)
    assert len(stack.bus.lost) == 1
    stack.worker.open.set()
    await stack.pass_time(stack.left_nothing)
    assert len(stack.sessions()) == 1


@pytest.mark.parametrize("stack", [{"accept_timeout_s": 0.2}], indirect=True, ids=str)
async def test_a_request_whose_acceptance_and_abort_are_lost_runs_for_nobody_only_for_a_moment(stack: Stack) -> None:
    abort = nth(".abort", m.Abort)
    stack.bus.lose = lambda subject, data: (
        (subject.startswith("_INBOX") and b'"tokenizer_id"' in data) or abort(subject, data)
    )
    stack.bus.on_publish = lambda s: stack.worker.open.clear() if s.endswith(".deltas") else None
    status, body = await stack.generate()
    assert (status, b'"code":"unavailable"' in body) == (503, True)
    await stack.pass_time(lambda: stack.scheduler.scheduler.idle)
    assert len(stack.bus.lost) == 2
    stack.worker.open.set()
    await stack.pass_time(stack.left_nothing)


async def test_a_slow_but_living_stream_is_never_ended(stack: Stack) -> None:
    stack.bus.on_publish = lambda s: stack.worker.open.clear() if s.endswith(".deltas") else None
    asking = stack.generate(stream=True)
    await until(lambda: not stack.worker.open.is_set())
    slow_until_s = stack.clock.now_s + 60.0
    await stack.pass_time(lambda: stack.clock.now_s >= slow_until_s, most_s=70.0, step_s=3.0)
    assert not asking.done()
    stack.bus.on_publish = lambda _: None
    stack.worker.open.set()
    status, body = await asking
    assert status == 200
    assert output_ids(body.split(b"data: ")[-2]) == EXPECTED
    assert len(stack.sessions()) == 1


async def test_while_nothing_runs_nothing_is_sent(stack: Stack) -> None:
    assert (await stack.generate())[0] == 200
    ended_s = stack.clock.now_s
    await stack.pass_time(lambda: stack.clock.now_s >= ended_s + 60.0, most_s=70.0, step_s=3.0)
    before = stack.bus.published
    await stack.pass_time(lambda: stack.clock.now_s >= ended_s + 90.0, most_s=70.0, step_s=3.0)
    assert stack.bus.published == before


def output_ids(body: bytes) -> list[int]:
    return list(orjson.loads(body)["output_ids"])

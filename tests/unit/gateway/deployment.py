"""A gateway with a fake tokenizer and scheduler on a bus: what all gateway tests run against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import orjson

from services.gateway.config import GatewayConfig
from services.gateway.service import GatewayService
from shared import log
from shared import messages as m
from shared.actor import Actor
from shared.bus import Bus, LocalBus
from shared.config import CommonConfig
from shared.errors import RhizomeError
from shared.messages.control import State

MODEL = "org/tiny-chat"
PROMPT_TOKENS, CACHED_TOKENS = 7, 4


@dataclass
class Script:
    """What the fake tokenizer does with one request: one delta per piece, then the end."""

    pieces: list[str | m.TextDelta] = field(default_factory=lambda: ["Hel", "lo", ' "world" é'])
    """Texts, or deltas with more than text."""
    finish: m.TextDelta = field(default_factory=lambda: m.TextDelta("", 0, finish_reason="stop", matched_stop=2))
    refuse: RhizomeError | None = None
    gate: asyncio.Event | None = None
    """After the first piece, wait for this before the rest."""
    silent: bool = False
    """Accept and never send a delta."""
    before_accepted: bool = False
    """All deltas overtake the answer."""
    seqs: list[int] | None = None
    """Sequence numbers instead of 0, 1, 2 ..."""
    prompt_text: str = "Once upon"


class FakeTokenizer:
    """Answers on the real subjects. `script` decides; requests and aborts are kept for the test to read."""

    def __init__(self, bus: Bus, deployment: str = "default") -> None:
        common = CommonConfig(name="tokenizer-0", deployment=deployment)
        self.actor = Actor("tokenizer", common, bus, log.setup("test", "error"))
        self.actor.facts = m.ServiceFacts(model=MODEL, context_length=2048, vocab_size=1000, created_s=1_700_000_000)
        self.scheduler_id = "scheduler-0-aaaaaa"
        self.script: Callable[[m.GenerateRequest], Script] = lambda _: Script()
        self.requests: list[m.GenerateRequest] = []
        self.aborted: list[str] = []
        self.abort_seen = asyncio.Event()

    async def start(self) -> None:
        subjects = self.actor.subjects
        await self.actor.serve(subjects.generate, m.GenerateRequest, self._generate, queue="tokenizer")
        await self.actor.serve(subjects.tokenize, m.Tokenize, self._tokenize, queue="tokenizer")
        await self.actor.serve(subjects.detokenize, m.Detokenize, self._detokenize, queue="tokenizer")
        await self.actor.on(subjects.tokenizer_abort(self.actor.id), m.Abort, self._abort)
        await self.actor.bus.flush()
        await self.actor.set_state("ready")

    async def _generate(self, request: m.GenerateRequest) -> m.Accepted:
        self.requests.append(request)
        script = self.script(request)
        if script.refuse is not None:
            raise script.refuse
        if script.before_accepted:
            await self._play(request, script)
        elif not script.silent:
            self.actor.spawn(self._play(request, script))
        return m.Accepted(request.rid, self.actor.id, self.scheduler_id, PROMPT_TOKENS)

    async def _play(self, request: m.GenerateRequest, script: Script) -> None:
        deltas = [self._piece(request, i, text) for i, text in enumerate(script.pieces)]
        generated = len(script.pieces)
        deltas.append(replace(script.finish, rid=request.rid, seq=generated, completion_tokens=generated))
        deltas[0] = replace(deltas[0], prompt=self._prompt(request, script))
        if not request.stream:
            deltas = [_merged(deltas)]
        for i, delta in enumerate(deltas):
            if script.seqs is not None:
                delta = replace(delta, seq=script.seqs[i])
            await self.actor.send(request.reply, m.TextDeltas([delta]))
            await asyncio.sleep(0)  # a step at a time, as a scheduler would
            if i == 0 and script.gate is not None:
                await script.gate.wait()

    def _piece(self, request: m.GenerateRequest, i: int, gain: str | m.TextDelta) -> m.TextDelta:
        if isinstance(gain, m.TextDelta):
            text = gain.text + gain.reasoning + "".join(call.arguments for call in gain.tool_calls or ())
        else:
            text, gain = gain, m.TextDelta("", 0, gain)
        logprobs = [token(100 + i, text, -0.5 * (i + 1), request.top_logprobs_num)] if request.return_logprob else []
        return replace(
            gain, rid=request.rid, seq=i, token_ids=[100 + i], logprobs=logprobs, completion_tokens=i + 1
        )  # fmt: skip

    def _prompt(self, request: m.GenerateRequest, script: Script) -> m.PromptInfo:
        logprobs = []
        if request.return_logprob and request.logprob_start_len >= 0:
            words = script.prompt_text.split()
            logprobs = [token(i, word, None if i == 0 else -1.0 * i, 1) for i, word in enumerate(words)]
        text = script.prompt_text if request.echo else None
        return m.PromptInfo(PROMPT_TOKENS, CACHED_TOKENS, text, logprobs)

    async def _tokenize(self, request: m.Tokenize) -> m.Tokens:
        text = request.text if request.text is not None else "".join(str(x["content"]) for x in request.chat.messages)
        return m.Tokens([ord(c) for c in text], 2048)

    async def _detokenize(self, request: m.Detokenize) -> m.Text:
        return m.Text("".join(map(chr, request.token_ids)))

    def _abort(self, message: m.Abort) -> None:
        self.aborted += message.rids
        self.abort_seen.set()


def token(id_: int, text: str, logprob: float | None, top: int) -> m.TokenLogprob:
    alternatives = [m.TopLogprob(id_ + k, text if k == 0 else f"alt{k}", (logprob or 0.0) - k) for k in range(top)]
    return m.TokenLogprob(id_, text, logprob, list(text.encode()), alternatives if logprob is not None else [])


def _merged(deltas: list[m.TextDelta]) -> m.TextDelta:
    return replace(
        deltas[-1],
        seq=0,
        text="".join(d.text for d in deltas),
        reasoning="".join(d.reasoning for d in deltas),
        tool_calls=merged_calls(deltas) or None,
        token_ids=[i for d in deltas for i in d.token_ids],
        logprobs=[x for d in deltas for x in d.logprobs],
        prompt=deltas[0].prompt,
    )


def merged_calls(deltas: list[m.TextDelta]) -> list[m.ToolCallDelta]:
    """One gain per call, as a request that does not stream gets them."""
    calls: dict[int, m.ToolCallDelta] = {}
    for gain in (gain for delta in deltas for gain in delta.tool_calls or ()):
        before = calls.get(gain.index)
        calls[gain.index] = gain if before is None else replace(before, arguments=before.arguments + gain.arguments)
    return list(calls.values())


def gain(text: str = "", reasoning: str = "", *calls: m.ToolCallDelta) -> m.TextDelta:
    """A piece of an answer with more than text."""
    return m.TextDelta("", 0, text, reasoning=reasoning, tool_calls=list(calls) or None)


@dataclass
class Deployment:
    """Gateway, fakes and a client session."""

    service: GatewayService
    tokenizer: FakeTokenizer
    session: aiohttp.ClientSession
    url: str

    async def post(self, path: str, body: object, **kwargs: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self.session.post(self.url + path, data=data, **kwargs) as response:
            return response.status, orjson.loads(await response.read())

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, orjson.loads(await response.read())

    async def events(self, path: str, body: object) -> list[Any]:
        """Data of every server-sent event; the end mark stays a string."""
        async with self.session.post(self.url + path, data=orjson.dumps(body)) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            return parse_events(await response.read())


def parse_events(data: bytes) -> list[Any]:
    assert data.endswith(b"\n\n")
    frames = data.decode().removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: ") for frame in frames)
    return ["[DONE]" if f == "data: [DONE]" else orjson.loads(f.removeprefix("data: ")) for f in frames]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so; the test's own timeout is the bound."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def beat(service: str, id_: str, state: State = "ready", engines: int = 0, started_s: float = 1.0) -> m.Heartbeat:
    """Heartbeat of an instance that exists in name only."""
    return m.Heartbeat(service, id_.rsplit("-", 1)[0], id_, state, 1, "host", started_s, engines_ready=engines)


@asynccontextmanager
async def deployed(
    config: GatewayConfig | None = None, gateway_bus: Bus | None = None, tokenizer_bus: Bus | None = None
) -> AsyncIterator[Deployment]:
    """Start everything on free ports; stop it afterwards."""
    bus = LocalBus()
    config = replace(config or GatewayConfig(), port=0)
    service = GatewayService(Actor("gateway", config.common, gateway_bus or bus, log.setup("test", "error")), config)
    tokenizer = FakeTokenizer(tokenizer_bus or bus, config.common.deployment)
    await service.start()
    await tokenizer.start()
    await service.actor.send(service.actor.subjects.heartbeat, beat("scheduler", tokenizer.scheduler_id, engines=1))
    await eventually(lambda: bool(service.peers.of("tokenizer")) and bool(service.peers.of("scheduler")))
    async with aiohttp.ClientSession() as session:
        yield Deployment(service, tokenizer, session, f"http://127.0.0.1:{service.port}")
    await service.stop()

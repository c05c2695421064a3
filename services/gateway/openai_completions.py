"""[walk 1] POST /v1/completions."""

from __future__ import annotations

import time

import orjson
from aiohttp import web

from services.gateway import refused
from services.gateway import requests as rq
from services.gateway.body import read_object
from services.gateway.call import Call
from services.gateway.core import Core, json_response
from services.gateway.grammar import grammar_of, naming
from services.gateway.logprobs import CompletionOffsets
from services.gateway.models import resolve_model
from services.gateway.openai_bodies import CompletionBody
from services.gateway.record import record_of
from services.gateway.responses import Completion, CompletionChoice
from services.gateway.results import Result, collect, openai_finish
from services.gateway.sse import ChunkTemplate, send_events
from services.gateway.streams import Delivery
from services.gateway.usage import usage_of
from shared import messages as m
from shared import schema
from shared.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16
_TEXT = b'"text":'
_AFTER_TEXT = b',"logprobs":null,"finish_reason":null'
_LOGPROBS = b',"logprobs":'
_RUNNING = b',"finish_reason":null'
_FINISH = b'"text":"","logprobs":null,"finish_reason":"'


class Completions:
    """Handler of the route."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def post(self, request: web.Request) -> web.StreamResponse:
        raw = await read_object(request)
        refused.refuse(raw, refused.COMPLETIONS)
        body = schema.parse(CompletionBody, raw, extra="ignore")
        record = record_of(request)
        record.rid, record.user = rq.check_rid(body.rid, record.rid), body.user
        n = rq.check_n(body.n, self._core.config.max_n)
        generations = self.generations(body, record.rid, n)
        model = resolve_model(body.model, self._core.backend.services()).id
        id_, created = f"cmpl-{record.rid}", int(time.time())
        timeout_s = rq.deadline_s(body.timeout_s, self._core.config)
        with naming(body):
            async with self._core.call(request, generations, timeout_s) as call:
                if body.stream:
                    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
                    template = ChunkTemplate(id_, "text_completion", created, model, with_usage)
                    chunks = CompletionChunks(template, call, body, n if with_usage else 0)
                    return await send_events(request, call, chunks.render, chunks.finish)
                choices = [_choice(i, result, body) for i, result in enumerate(await collect(call))]
                return json_response(Completion(id_, created, model, choices, usage_of(call.streams, n)))

    def generations(self, body: CompletionBody, rid: str, n: int) -> list[m.GenerateRequest]:
        """The body as requests to a tokenizer, one per prompt and choice.

        Raises:
            InvalidRequest: values are out of range or contradict each other.
        """
        rq.check_tenancy(body.priority, body.cache_salt)
        rq.check_stream_options(body.stream, body.stream_options)
        if body.best_of is not None and body.best_of != n:
            raise InvalidRequest(f"best_of {body.best_of} is not supported: leave it out or give n", param="best_of")
        prompts = _prompts(body.prompt)
        rq.check_prompts(prompts, "prompt", self._core.config.max_prompts_per_request)
        sampling = rq.openai_sampling(body, DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
        rq.check_seed_range(sampling.seed, n)
        with_logprobs = body.logprobs is not None
        base = m.GenerateRequest(
            rid=rid,
            reply=self._core.backend.reply,
            sampling=sampling,
            stream=bool(body.stream),
            return_logprob=with_logprobs,
            top_logprobs_num=rq.check_top_logprobs(body.logprobs, "logprobs"),
            logprob_start_len=0 if body.echo and with_logprobs else -1,
            echo=bool(body.echo),
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            timeout_s=rq.deadline_s(body.timeout_s, self._core.config),
            grammar=grammar_of(body),
        )
        return rq.fan_out(base, prompts, n)


def _prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> list[rq.Prompt]:
    """One prompt or several, told apart by the first element; a mixed list was refused by the parser."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        return []
    if isinstance(prompt[0], int):
        return [[i for i in prompt if isinstance(i, int)]]
    return [p for p in prompt if not isinstance(p, int)]


def _choice(index: int, result: Result, body: CompletionBody) -> CompletionChoice:
    text, tokens = result.text, result.logprobs
    if body.echo and result.prompt is not None:
        text = (result.prompt.text or "") + text
        tokens = result.prompt.logprobs + tokens
    logprobs = CompletionOffsets().take(tokens) if body.logprobs is not None else None
    return CompletionChoice(index, text, logprobs, result.finish_reason)


class CompletionChunks:
    """Deltas of one streamed call to chunk bytes. `usage_n` is n when usage was asked for, else 0."""

    def __init__(self, template: ChunkTemplate, call: Call, body: CompletionBody, usage_n: int) -> None:
        self._template, self._call, self._usage_n = template, call, usage_n
        self._echo = bool(body.echo)
        self._heads = [template.choice(i) for i in range(len(call.streams))]
        self._offsets = [CompletionOffsets() for _ in call.streams] if body.logprobs is not None else []

    def render(self, batch: list[Delivery]) -> bytes:
        end = self._template.end
        parts: list[bytes] = []
        for index, delta in batch:
            head = self._heads[index]
            text, tokens = delta.text, delta.logprobs
            if self._echo and delta.prompt is not None:
                text = (delta.prompt.text or "") + text
                tokens = delta.prompt.logprobs + tokens
            if self._offsets and tokens:
                logprobs = orjson.dumps(self._offsets[index].take(tokens))
                parts += (head, _TEXT, orjson.dumps(text), _LOGPROBS, logprobs, _RUNNING, end)
            elif text:
                parts += (head, _TEXT, orjson.dumps(text), _AFTER_TEXT, end)
            if delta.finish_reason is not None:
                parts += (head, _FINISH, openai_finish(delta).encode(), b'"', end)
        return b"".join(parts)

    def finish(self) -> bytes:
        return self._template.usage(usage_of(self._call.streams, self._usage_n)) if self._usage_n else b""

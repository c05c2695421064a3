"""[walk 1] POST /v1/chat/completions."""

from __future__ import annotations

import time
from typing import Any

import orjson
from aiohttp import web

from services.gateway import refused
from services.gateway import requests as rq
from services.gateway.body import read_object
from services.gateway.call import Call
from services.gateway.core import Core, json_response
from services.gateway.grammar import grammar_of, naming
from services.gateway.logprobs import chat_logprobs
from services.gateway.models import resolve_model
from services.gateway.openai_bodies import ChatCompletionBody
from services.gateway.record import record_of
from services.gateway.responses import ChatChoice, ChatCompletion
from services.gateway.results import collect, openai_finish
from services.gateway.sse import ChunkTemplate, send_events
from services.gateway.streams import Delivery
from services.gateway.tools import tools_of
from services.gateway.usage import usage_of
from shared import messages as m
from shared import schema
from shared.errors import InvalidRequest

_ROLE = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
_TEXT = b'"delta":{"content":'
_AFTER_TEXT = b'},"logprobs":null,"finish_reason":null'
_LOGPROBS = b'},"logprobs":'
_DELTA = b'"delta":'
_LOGPROBS_AFTER = b',"logprobs":'
_NULL = b"null"
_RUNNING = b',"finish_reason":null'
_FINISH = b'"delta":{},"logprobs":null,"finish_reason":"'


class ChatCompletions:
    """Handler of the route."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def post(self, request: web.Request) -> web.StreamResponse:
        raw = await read_object(request)
        refused.refuse(raw, refused.CHAT)
        body = schema.parse(ChatCompletionBody, raw, extra="ignore")
        record = record_of(request)
        record.rid, record.user = rq.check_rid(body.rid, record.rid), body.user
        n = rq.check_n(body.n, self._core.config.max_n)
        generations = await self._core.by_reference(self.generations(body, record.rid, n))
        model = resolve_model(body.model, self._core.backend.services()).id
        id_, created = f"chatcmpl-{record.rid}", int(time.time())
        timeout_s = rq.deadline_s(body.timeout_s, self._core.config)
        with naming(body):
            async with self._core.call(request, generations, timeout_s) as call:
                if body.stream:
                    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
                    template = ChunkTemplate(id_, "chat.completion.chunk", created, model, with_usage)
                    chunks = ChatChunks(template, call, bool(body.logprobs), n if with_usage else 0)
                    return await send_events(request, call, chunks.render, chunks.finish)
                choices = [
                    ChatChoice(i, r.message(), chat_logprobs(r.logprobs) if body.logprobs else None, r.finish_reason)
                    for i, r in enumerate(await collect(call))
                ]
                return json_response(ChatCompletion(id_, created, model, choices, usage_of(call.streams, n)))

    def generations(self, body: ChatCompletionBody, rid: str, n: int) -> list[m.GenerateRequest]:
        """The body as requests to a tokenizer, one per choice.

        Raises:
            InvalidRequest: values are out of range or contradict each other.
        """
        rq.check_tenancy(body.priority, body.cache_salt)
        rq.check_stream_options(body.stream, body.stream_options)
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        sampling = rq.openai_sampling(body, _max_new_tokens(body))
        rq.check_seed_range(sampling.seed, n)
        base = m.GenerateRequest(
            rid=rid,
            reply=self._core.backend.reply,
            sampling=sampling,
            stream=bool(body.stream),
            return_logprob=bool(body.logprobs),
            top_logprobs_num=rq.check_top_logprobs(body.top_logprobs, "top_logprobs"),
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            timeout_s=rq.deadline_s(body.timeout_s, self._core.config),
            grammar=grammar_of(body),
        )
        return rq.fan_out(base, [_conversation(body)], n)


def _max_new_tokens(body: ChatCompletionBody) -> int | None:
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise InvalidRequest("max_tokens and max_completion_tokens differ: give one", param="max_tokens")
    return both[1] if both[0] is None else both[0]


def _conversation(body: ChatCompletionBody) -> m.ChatInput:
    messages = rq.as_messages(body.messages)
    if body.continue_final_message:
        if body.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        if body.messages[-1].role != "assistant":
            raise InvalidRequest("continue_final_message needs a last message of the assistant", param="messages")
    tools = tools_of(body)
    return m.ChatInput(
        messages=messages,
        tools=tools.tools,
        tool_choice=tools.choice,
        tool_name=tools.name,
        parallel_tool_calls=tools.parallel,
        max_whitespace=body.max_whitespace or 0,
        jump_forward=body.jump_forward is not False,
        separate_reasoning=body.separate_reasoning is not False,
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        continue_final_message=bool(body.continue_final_message),
        template_kwargs=body.chat_template_kwargs or {},
    )


class ChatChunks:
    """Deltas of one streamed call to chunk bytes. `usage_n` is n when usage was asked for, else 0."""

    def __init__(self, template: ChunkTemplate, call: Call, logprobs: bool, usage_n: int) -> None:
        self._template, self._call, self._logprobs, self._usage_n = template, call, logprobs, usage_n
        self._heads = [template.choice(i) for i in range(len(call.streams))]
        self._opened = [False] * len(call.streams)

    def render(self, batch: list[Delivery]) -> bytes:
        end = self._template.end
        parts: list[bytes] = []
        for index, delta in batch:
            head = self._heads[index]
            if not self._opened[index]:
                self._opened[index] = True
                parts += (head, _ROLE, end)
            logprobs = orjson.dumps(chat_logprobs(delta.logprobs)) if self._logprobs and delta.logprobs else _NULL
            if delta.tool_calls or delta.reasoning:
                parts += (head, _DELTA, orjson.dumps(_gain(delta)), _LOGPROBS_AFTER, logprobs, _RUNNING, end)
            elif logprobs is not _NULL:
                parts += (head, _TEXT, orjson.dumps(delta.text), _LOGPROBS, logprobs, _RUNNING, end)
            elif delta.text:
                parts += (head, _TEXT, orjson.dumps(delta.text), _AFTER_TEXT, end)
            if delta.finish_reason is not None:
                parts += (head, _FINISH, openai_finish(delta).encode(), b'"', end)
        return b"".join(parts)

    def finish(self) -> bytes:
        return self._template.usage(usage_of(self._call.streams, self._usage_n)) if self._usage_n else b""


def _gain(delta: m.TextDelta) -> dict[str, Any]:
    """`delta` of a chunk with more than text; what was not gained is left out."""
    gain: dict[str, Any] = {}
    if delta.reasoning:
        gain["reasoning_content"] = delta.reasoning
    if delta.text:
        gain["content"] = delta.text
    if delta.tool_calls:
        gain["tool_calls"] = [_call_gain(call) for call in delta.tool_calls]
    return gain


def _call_gain(call: m.ToolCallDelta) -> dict[str, Any]:
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}

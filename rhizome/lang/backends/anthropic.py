"""Anthropic-style messages: POST /v1/messages, whole or streamed. Goes on with a begun answer of the assistant."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from rhizome.lang.backends.base import Backend, Completion, Delta, Usage
from rhizome.lang.backends.http import HttpClient
from rhizome.lang.chat_messages import as_messages
from rhizome.lang.conversation import Message, Prompt
from rhizome.lang.errors import BackendError, LanguageError, Unsupported
from rhizome.lang.sampling import SamplingParams

VERSION = "2023-06-01"
_REFUSED = (
    "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos", "seed", "min_new_tokens",
    "return_logprob", "stop_token_ids",
)  # fmt: skip


class Anthropic(Backend):
    """Args:
    model_name: as the API knows it.
    api_key: else ANTHROPIC_API_KEY.
    prefill: whether the model goes on with a last message of the assistant.
    """

    is_chat_model = True

    def __init__(
        self,
        model_name: str,
        api_key: str | None = None,
        *,
        base_url: str = "https://api.anthropic.com",
        prefill: bool = True,
        max_retries: int = 4,
    ) -> None:
        api_key = api_key or os.environ.get("ANTHROPIC_API_KEY")
        if not api_key:
            raise LanguageError("no API key: set ANTHROPIC_API_KEY or give api_key=")
        self.model_name, self.can_prefill = model_name, prefill
        self._http = HttpClient(base_url, {"x-api-key": api_key, "anthropic-version": VERSION}, max_retries=max_retries)

    async def generate(self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False) -> list[Completion]:
        if (params.n or 1) > 1:
            raise Unsupported("this API gives one sample per call: fork instead of n")
        answer = await self._http.json("POST", "/v1/messages", self._body(prompt, params))
        text = "".join(part["text"] for part in answer["content"] if part["type"] == "text")
        calls = [part for part in answer["content"] if part["type"] == "tool_use"]
        usage, meta, finish = _facts(answer.get("stop_reason"), answer.get("stop_sequence"), answer.get("usage") or {})
        if calls:
            meta["tool_calls"] = calls
        return [Completion(text, meta, usage, finish)]

    async def stream(
        self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False
    ) -> AsyncIterator[Delta]:
        if params.tools:
            raise Unsupported("gen(tools=...) is not streamed")
        used: dict[str, Any] = {}
        reason = sequence = None
        body = {**self._body(prompt, params), "stream": True}
        async with aclosing(self._http.events("/v1/messages", body)) as events:  # type: ignore[type-var]
            async for event in events:
                kind = event.get("type")
                if kind == "content_block_delta" and event["delta"].get("type") == "text_delta":
                    yield Delta(event["delta"]["text"])
                elif kind == "message_start":
                    used |= event["message"].get("usage") or {}
                elif kind == "message_delta":
                    used |= event.get("usage") or {}
                    reason, sequence = event["delta"].get("stop_reason"), event["delta"].get("stop_sequence")
                elif kind == "error":
                    raise BackendError(str(event["error"].get("message", event["error"])))
        if reason is None:
            raise BackendError("the answer broke off")
        usage, meta, finish = _facts(reason, sequence, used)
        yield Delta("", meta, usage, finish)

    async def aclose(self) -> None:
        await self._http.close()

    def _body(self, prompt: Prompt, params: SamplingParams) -> dict[str, Any]:
        for name in _REFUSED:
            if getattr(params, name) not in (None, (), False, 0, 0.0):
                raise Unsupported(f"this API has no {name}")
        if params.grammar:
            raise Unsupported(f"this API has no {params.grammar[0]}")
        messages = as_messages(prompt, prefill=self.can_prefill)
        system = [m["content"] for m in messages if m["role"] == "system"]
        body: dict[str, Any] = {
            "model": self.model_name, "max_tokens": params.limit, "temperature": params.temperature,
            "messages": [_message(m) for m in messages if m["role"] != "system"],
        }  # fmt: skip
        if system:
            body["system"] = "\n\n".join(system)
        if params.stops:
            body["stop_sequences"] = list(params.stops)
        if params.top_p is not None:
            body["top_p"] = params.top_p
        if params.top_k is not None and params.top_k > 0:
            body["top_k"] = params.top_k
        if params.tools:
            body["tools"] = [_tool(tool) for tool in params.tools]
            if params.tool_choice is not None:
                body["tool_choice"] = _tool_choice(params.tool_choice)
        return body


def _message(message: Message) -> Message:
    """A message with OpenAI's picture parts as Anthropic's."""
    if isinstance(message["content"], str):
        # The API refuses a last message that ends with white space.
        content = message["content"].rstrip() if message["role"] == "assistant" else message["content"]
        return {"role": message["role"], "content": content}
    parts = []
    for part in message["content"]:
        if part["type"] == "text":
            parts.append(part)
            continue
        url = part["image_url"]["url"]
        if url.startswith("data:"):
            kind, _, data = url[5:].partition(";base64,")
            source = {"type": "base64", "media_type": kind, "data": data}
        else:
            source = {"type": "url", "url": url}
        parts.append({"type": "image", "source": source})
    return {"role": message["role"], "content": parts}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    return {
        "name": function["name"], "description": function.get("description", ""),
        "input_schema": function.get("parameters", function.get("input_schema", {"type": "object"})),
    }  # fmt: skip


def _tool_choice(choice: str | dict[str, Any]) -> dict[str, Any]:
    """OpenAI's choice as Anthropic's; an object of Anthropic's form stays as it is."""
    if isinstance(choice, str):
        return {"type": {"required": "any"}.get(choice, choice)}
    return {"type": "tool", "name": choice["function"]["name"]} if "function" in choice else choice


def _facts(reason: Any, sequence: Any, used: dict[str, Any]) -> tuple[Usage, dict[str, Any], str]:
    usage = Usage(
        used.get("input_tokens", 0) + (used.get("cache_read_input_tokens") or 0), used.get("output_tokens", 0),
        used.get("cache_read_input_tokens") or 0,
    )  # fmt: skip
    finish = "length" if reason == "max_tokens" else "stop"
    matched = {"matched": sequence} if sequence else {}
    return usage, {"finish_reason": {"type": finish, **matched}, "stop_reason": reason}, finish

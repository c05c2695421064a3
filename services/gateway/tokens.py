"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import web

from services.gateway import requests as rq
from services.gateway.body import read_object
from services.gateway.core import Core, json_response
from services.gateway.models import resolve_model
from services.gateway.native_bodies import DetokenizeBody, TokenizeBody
from services.gateway.responses import DetokenizeResult, TokenizeResult
from services.gateway.tools import template_forms
from shared import messages as m
from shared import schema
from shared.errors import InvalidRequest


class Tokens:
    """Handlers of both routes."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def tokenize(self, request: web.Request) -> web.Response:
        body = schema.parse(TokenizeBody, await read_object(request), extra="ignore")
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("give exactly one of prompt and messages", param="prompt")
        resolve_model(body.model, self._core.backend.services())
        asked = self._tokenize_requests(body)
        answers = await asyncio.gather(*(self._core.backend.tokenize(a) for a in asked))
        ids = [a.token_ids for a in answers]
        most = answers[0].context_length
        if isinstance(body.prompt, list):
            return json_response(TokenizeResult(ids, [len(i) for i in ids], most))
        return json_response(TokenizeResult(ids[0], len(ids[0]), most))

    def _tokenize_requests(self, body: TokenizeBody) -> list[m.Tokenize]:
        special = body.add_special_tokens is not False
        if body.messages is not None:
            generation_prompt = body.add_generation_prompt is not False
            tools = template_forms(body.tools or [])
            chat = m.ChatInput(rq.as_messages(body.messages), tools, add_generation_prompt=generation_prompt)
            return [m.Tokenize(chat=chat, add_special_tokens=special)]
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt or []
        _check_count(len(prompts), self._core.config.max_prompts_per_request, "prompt")
        return [m.Tokenize(text=prompt, add_special_tokens=special) for prompt in prompts]

    async def detokenize(self, request: web.Request) -> web.Response:
        body = schema.parse(DetokenizeBody, await read_object(request), extra="ignore")
        resolve_model(body.model, self._core.backend.services())
        batch = bool(body.tokens) and isinstance(body.tokens[0], list)
        lists = cast(list[list[int]], body.tokens if batch else [body.tokens])
        _check_count(len(lists), self._core.config.max_prompts_per_request, "tokens")
        for ids in lists:
            rq.check_ids(ids, "tokens")
        skip = body.skip_special_tokens is not False
        answers = await asyncio.gather(*(self._core.backend.detokenize(m.Detokenize(ids, skip)) for ids in lists))
        return json_response(DetokenizeResult([a.text for a in answers] if batch else answers[0].text))


def _check_count(count: int, limit: int, param: str) -> None:
    if not 1 <= count <= limit:
        raise InvalidRequest(f"{param} must have 1 to {limit} entries, got {count}", param=param)

"""The route table and the aiohttp application made from it.

Every route stands here once, with what it takes and gives; the router and /openapi.json are both built from this
table, so neither can know a route that the other does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from services.gateway import native_bodies, openai_bodies
from services.gateway import responses as rs
from services.gateway.admin import Admin
from services.gateway.auth import ApiKeys
from services.gateway.core import Core
from services.gateway.exposition import Exposition
from services.gateway.metrics import GatewayMetrics
from services.gateway.middleware import answering_preflights, authorizing, observing, stamping
from services.gateway.native import NativeGenerate
from services.gateway.openai_chat import ChatCompletions
from services.gateway.openai_completions import Completions
from services.gateway.openapi import OpenApi
from services.gateway.tokens import Tokens
from shared.log import Log

_GENERATING = ("400", "401", "404", "413", "429", "499", "503", "504")
_TOKENIZING = ("400", "401", "404", "413", "503")
_SSE = ("text/event-stream",)


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path: `body` parses it, `answers` are the JSON types it gives."""

    method: str
    path: str
    name: str
    summary: str
    tag: str
    handler: Handler
    body: type | None = None
    answers: tuple[Any, ...] = ()
    other_content: tuple[str, ...] = ()
    errors: tuple[str, ...] = ("401",)
    own_error_bodies: tuple[str, ...] = ()
    """Statuses whose body is one of `answers` instead of an error."""


def routes(core: Core) -> list[Route]:
    """Every route; the last two describe all of them."""
    chat, completions, native = ChatCompletions(core), Completions(core), NativeGenerate(core)
    tokens, admin, exposition = Tokens(core), Admin(core), Exposition(core)
    api = OpenApi()
    flush = Route("POST", "/flush_cache", "flushCache", "Empty the prefix cache of every scheduler.", "control",
                  admin.flush_cache, answers=(rs.CacheFlush,), errors=("401", "503"))  # fmt: skip
    info = Route("GET", "/server_info", "serverInfo", "Services, schedulers, limits and load.", "control",
                 admin.server_info, answers=(rs.ServerInfo,))  # fmt: skip
    table = [
        Route("POST", "/v1/chat/completions", "createChatCompletion", "Answer a conversation.", "openai", chat.post,
              openai_bodies.ChatCompletionBody, (rs.ChatCompletion,), _SSE, _GENERATING),
        Route("POST", "/v1/completions", "createCompletion", "Continue one or several prompts.", "openai",
              completions.post, openai_bodies.CompletionBody, (rs.Completion,), _SSE, _GENERATING),
        Route("GET", "/v1/models", "listModels", "Models served here.", "openai", admin.models,
              answers=(rs.ModelList,)),
        Route("GET", "/v1/models/{id}", "getModel", "One served model.", "openai", admin.model,
              answers=(rs.Model,), errors=("401", "404", "503")),
        Route("POST", "/generate", "generate", "Continue one or several prompts, in SGLang's shape.", "native",
              native.post, native_bodies.GenerateBody, (rs.Generation, list[rs.Generation]), _SSE, _GENERATING),
        Route("POST", "/tokenize", "tokenize", "Text or a conversation to token ids.", "native", tokens.tokenize,
              native_bodies.TokenizeBody, (rs.TokenizeResult,), errors=_TOKENIZING),
        Route("POST", "/detokenize", "detokenize", "Token ids to text.", "native", tokens.detokenize,
              native_bodies.DetokenizeBody, (rs.DetokenizeResult,), errors=_TOKENIZING),
        Route("GET", "/health", "health", "The process answers. Needs no key.", "control", admin.health,
              answers=(rs.Health,), errors=()),
        Route("GET", "/ready", "ready", "A request would be served now. Needs no key.", "control", admin.ready,
              answers=(rs.Readiness,), errors=("503",), own_error_bodies=("503",)),
        info,
        replace(info, path="/get_server_info", name="getServerInfo"),
        Route("GET", "/get_model_info", "getModelInfo", "The served model, as SGLang's clients ask for it.", "native",
              admin.model_info, answers=(rs.ServedModelInfo,), errors=("401", "503")),
        Route("GET", "/metrics", "metrics", "Prometheus metrics of every instance.", "control", exposition.get,
              other_content=("text/plain",)),
        flush,
        replace(flush, method="GET", name="flushCacheGet"),
        Route("GET", "/openapi.json", "openapi", "This document.", "control", api.get, answers=(dict[str, Any],)),
        Route("GET", "/docs", "docs", "This document for people.", "control", api.docs,
              other_content=("text/html",)),
    ]  # fmt: skip
    api.describe(table)
    return table


def build_app(core: Core, keys: ApiKeys, metrics: GatewayMetrics, log: Log) -> web.Application:
    """The application; `service.py` runs it."""
    origins = core.config.allow_origin
    app = web.Application(
        middlewares=[observing(metrics, log), answering_preflights(origins), authorizing(keys)],
        client_max_size=core.config.max_body_bytes,
    )
    app.on_response_prepare.append(stamping(origins))
    for route in routes(core):
        app.router.add_route(route.method, route.path.replace("{id}", "{id:.+}"), route.handler)
    return app

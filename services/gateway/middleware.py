"""Round every handler: record, authorization, errors to HTTP, metrics, log line, CORS headers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from services.gateway.auth import ApiKeys
from services.gateway.http_errors import error_response, from_aiohttp
from services.gateway.metrics import GatewayMetrics
from services.gateway.record import RECORD, Record
from shared.errors import RhizomeError
from shared.log import Log

OPEN_ROUTES = {"/health", "/ready"}
"""Probes carry no key."""
CLIENT_GONE = 499


def observing(metrics: GatewayMetrics, log: Log) -> Middleware:
    """Outermost: one record, one metric and one log line per request, whatever happens."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = request[RECORD] = Record(_pattern(request))
        try:
            response = await _answer(request, handler, record)
            record.status = response.status
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            record.status = CLIENT_GONE
            metrics.client_disconnects.inc()
            raise
        finally:
            metrics.http_requests.labels(record.route, record.status).inc()
            level = log.debug if record.route in OPEN_ROUTES or record.route == "/metrics" else log.info
            level("request", **record.fields())

    return observe


async def _answer(request: web.Request, handler: Handler, record: Record) -> web.StreamResponse:
    try:
        return await handler(request)
    except RhizomeError as fault:
        record.error = fault.code
        return error_response(fault)
    except web.HTTPException as fault:
        return from_aiohttp(fault, request)


def authorizing(keys: ApiKeys) -> Middleware:
    """Refuse requests without a valid key, except for probes and CORS preflights (which never carry one)."""

    @web.middleware
    async def authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN_ROUTES and request.method != "OPTIONS":
            keys.check(request.headers.get("Authorization"))
        return await handler(request)

    return authorize


def answering_preflights(origins: Sequence[str]) -> Middleware:
    """Answer the OPTIONS request that a browser sends first, when its origin is allowed."""

    @web.middleware
    async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "OPTIONS" and allowed_origin(request, origins):
            headers = {
                "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
                "Access-Control-Allow-Headers": "Authorization, Content-Type",
                "Access-Control-Max-Age": "3600",
            }
            return web.Response(status=204, headers=headers)
        return await handler(request)

    return preflight


def allowed_origin(request: web.Request, origins: Sequence[str]) -> str | None:
    """Value of `Access-Control-Allow-Origin` for this request, or None."""
    origin = request.headers.get("Origin")
    if origin is None:
        return None
    if "*" in origins:
        return "*"
    return origin if origin in origins else None


def stamping(origins: Sequence[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Headers of every response, streams included: set just before they are sent."""

    async def stamp(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "rhizome"
        if RECORD in request:
            response.headers["X-Request-Id"] = request[RECORD].rid
        if origin := allowed_origin(request, origins):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After"
            response.headers["Vary"] = "Origin"

    return stamp


def _pattern(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"

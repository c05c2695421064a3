"""Request bodies: bytes to a JSON object, with every way of being malformed answered by a clear 400 or 413."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import ClientError, web

from shared.errors import InvalidRequest, TooLarge

MAX_DEPTH = 64
"""Levels of nesting; far under what any encoder or template on the way could choke on."""
READ_TIMEOUT_S = 60.0


async def read_object(request: web.Request) -> dict[str, Any]:
    """Read the body of a request, whatever its content type, as a JSON object.

    Raises:
        TooLarge: over the application's `client_max_size`.
        InvalidRequest: not complete in time, not JSON, not an object, or nested too deeply.
    """
    limit = request.client_max_size
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge(f"body of {request.content_length:,} bytes is over the limit of {limit:,}")
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            data = await request.read()
    except TimeoutError as fault:
        raise InvalidRequest(f"the body was not complete within {READ_TIMEOUT_S:g} s") from fault
    except (ClientError, web.RequestPayloadError) as fault:
        raise InvalidRequest(f"the body cannot be read: {fault}") from fault
    return decode_object(data)


def decode_object(data: bytes) -> dict[str, Any]:
    """JSON bytes to an object. NaN, infinities, lone surrogates and bad UTF-8 are no JSON.

    Raises:
        InvalidRequest: naming the line and column of the fault.
    """
    if not data:
        raise InvalidRequest("the body is empty: send a JSON object")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as fault:
        raise InvalidRequest(f"the body is not valid JSON: {fault}") from fault
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    # Few brackets cannot nest deeply: most bodies skip the walk.
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _depth_over(value, MAX_DEPTH):
        raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep")
    return value


def _depth_over(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        inner: list[Any] = []
        for item in level:
            inner += [v for v in (item.values() if isinstance(item, dict) else item) if isinstance(v, (dict, list))]
        if not inner:
            return False
        level = inner
    return True

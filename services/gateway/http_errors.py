"""Error codes to HTTP: the one place that knows both.

Bodies have OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, so that its clients raise their own
exception classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from aiohttp import web

from shared.errors import InvalidRequest, NotFound, RhizomeError, TooLarge


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What went wrong and what to change."""

    message: str
    type: str
    param: str | None
    """The request field at fault, for example `messages[0].role`."""
    code: str | None


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """Answer to every request that failed."""

    error: ErrorBody


class ModelNotFound(NotFound):
    """The `model` field names none that is served."""

    code = "model_not_found"


class MethodNotAllowed(RhizomeError):
    """The route exists with other methods."""

    code = "method_not_allowed"


STATUS: dict[str, tuple[int, str]] = {
    "invalid_request": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "invalid_api_key": (401, "authentication_error"),
    "not_found": (404, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "too_large": (413, "invalid_request_error"),
    "overloaded": (429, "rate_limit_error"),
    "aborted": (499, "aborted_error"),
    "internal_error": (500, "server_error"),
    "bad_message": (500, "server_error"),
    "config_error": (500, "server_error"),
    "unavailable": (503, "unavailable_error"),
    "media_lost": (503, "unavailable_error"),
    "deadline_exceeded": (504, "timeout_error"),
}
"""Stable code -> (HTTP status, OpenAI error type)."""

MAX_MESSAGE_CHARS, MAX_PARAM_CHARS = 2000, 200
"""Both may quote what the client sent."""
RETRY_AFTER_S = {429: "1", 503: "2"}


def status_of(fault: RhizomeError) -> int:
    return STATUS[fault.code][0]


def error_body(fault: RhizomeError) -> bytes:
    """The JSON body; also the data of an SSE error event."""
    param = fault.param if fault.param is None else fault.param[:MAX_PARAM_CHARS]
    error = ErrorBody(fault.message[:MAX_MESSAGE_CHARS], STATUS[fault.code][1], param, fault.code)
    return orjson.dumps(ErrorResponse(error))


def error_response(fault: RhizomeError) -> web.Response:
    """A complete HTTP answer for an error that came before the first byte."""
    status = status_of(fault)
    headers = {"Retry-After": RETRY_AFTER_S[status]} if status in RETRY_AFTER_S else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(status=status, body=error_body(fault), content_type="application/json", headers=headers)


def from_aiohttp(fault: web.HTTPException, request: web.Request) -> web.StreamResponse:
    """Routing errors of aiohttp (404, 405, 413 ...) in our shape."""
    if isinstance(fault, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(fault.allowed_methods))
        message = f"{request.method} is not allowed on {request.path}: use {allowed}"
        response = error_response(MethodNotAllowed(message))
        response.headers["Allow"] = allowed
        return response
    if isinstance(fault, web.HTTPNotFound):
        return error_response(NotFound(f"no route {request.method} {request.path}: see /openapi.json"))
    if isinstance(fault, web.HTTPRequestEntityTooLarge):
        return error_response(TooLarge(f"body is over the limit of {request.client_max_size:,} bytes"))
    if 400 <= fault.status < 500:
        return error_response(InvalidRequest(fault.reason))
    return fault

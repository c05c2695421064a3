"""The OpenAPI 3.1 document, made from the route table and the dataclasses that parse and write the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from services.gateway.http_errors import ErrorResponse
from shared import __version__, schema

if TYPE_CHECKING:
    from services.gateway.app import Route

_HTTP_ERRORS = {
    "400": "The request is malformed; `param` names the field",
    "401": "API key missing or wrong",
    "404": "No such model or route",
    "413": "Body too large",
    "429": "Too many generations are running; Retry-After says when to try again",
    "499": "The generation was aborted",
    "503": "A service is missing; Retry-After says when to try again",
    "504": "Deadline exceeded",
}
_DOCS_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Rhizome API</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
code{background:#8882;padding:.1em .3em}td,th{text-align:left;vertical-align:top;padding:.2em 1em .2em 0}
summary{cursor:pointer;margin:.4em 0}</style>
<h1>Rhizome API</h1><p>The machine-readable document is <a href="openapi.json">openapi.json</a>.</p>
"""


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document as JSON values."""
    defs: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    error = schema.json_schema(ErrorResponse, defs)
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, error, defs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Rhizome", "version": __version__, "description": "LLM serving over NATS."},
        "paths": paths,
        "components": {"schemas": defs, "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}}},
        "security": [{"apiKey": []}, {}],
    }


def _operation(route: Route, error: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answers:
        schemas = [schema.json_schema(answer, defs) for answer in route.answers]
        content["application/json"] = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    for kind in route.other_content:
        content[kind] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "Success", "content": content}}
    for status in route.errors:
        failed = content if status in route.own_error_bodies else {"application/json": {"schema": error}}
        responses[status] = {"description": _HTTP_ERRORS[status], "content": failed}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "responses": responses,
    }
    if route.body is not None:
        body = schema.json_schema(route.body, defs)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    names = [part[1:-1].split(":")[0] for part in route.path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return operation


class OpenApi:
    """Handlers of /openapi.json and /docs. `describe` is called once, with a table that lists these handlers too."""

    def __init__(self) -> None:
        self._json, self._html = b"", b""

    def describe(self, routes: Sequence[Route]) -> None:
        doc = document(routes)
        self._json, self._html = orjson.dumps(doc), _page(doc).encode()

    async def get(self, _: web.Request) -> web.Response:
        return web.Response(body=self._json, content_type="application/json")

    async def docs(self, _: web.Request) -> web.Response:
        return web.Response(body=self._html, content_type="text/html", charset="utf-8")


def _page(doc: dict[str, Any]) -> str:
    parts = [_DOCS_PAGE]
    for path, operations in doc["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h3><code>{method.upper()} {path}</code></h3><p>{_escaped(operation['summary'])}</p>")
            if body := operation.get("requestBody"):
                ref = body["content"]["application/json"]["schema"]["$ref"]
                parts.append(_fields(doc["components"]["schemas"][ref.rsplit("/", 1)[1]]))
    return "\n".join([*parts, "</html>"])


def _fields(body: dict[str, Any]) -> str:
    required = set(body.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{name}</code>{' *' if name in required else ''}</td>"
        f"<td>{_escaped(field.get('description', ''))}</td></tr>"
        for name, field in sorted(body["properties"].items(), key=lambda item: item[0] not in required)
    )
    return f"<details><summary>Body (* required)</summary><table>{rows}</table></details>"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")

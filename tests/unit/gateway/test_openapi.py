"""/openapi.json is valid and true: every route and field that is served stands in it, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.gateway import native_bodies, openai_bodies
from tests.unit.gateway.deployment import MODEL, Deployment

BODIES = {
    "/v1/chat/completions": (openai_bodies.ChatCompletionBody, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (openai_bodies.CompletionBody, {"prompt": "hi"}),
    "/generate": (native_bodies.GenerateBody, {"text": "hi"}),
    "/tokenize": (native_bodies.TokenizeBody, {"prompt": "hi"}),
    "/detokenize": (native_bodies.DetokenizeBody, {"tokens": [97]}),
}


async def served(gw: Deployment) -> dict[str, Any]:
    status, doc = await gw.get("/openapi.json")
    assert status == 200
    return doc


async def test_the_document_is_valid_openapi_3_1(gw: Deployment) -> None:
    OpenAPIV31SpecValidator(await served(gw)).validate()


async def test_documented_routes_are_the_served_ones(gw: Deployment) -> None:
    documented = {(m.upper(), path) for path, ops in (await served(gw))["paths"].items() for m in ops}
    app = gw.service.runner.app
    routed = {(r.method, r.resource.canonical) for r in app.router.routes() if r.resource is not None}
    assert documented == routed


@pytest.mark.parametrize("path", BODIES)
async def test_documented_fields_are_the_parsed_ones_and_each_is_checked(gw: Deployment, path: str) -> None:
    doc, (cls, minimal) = await served(gw), BODIES[path]
    ref = doc["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    properties = doc["components"]["schemas"][ref.rsplit("/", 1)[1]]["properties"]
    assert set(properties) == {f.name for f in dataclasses.fields(cls)}
    for name in properties:
        status, body = await gw.post(path, {**minimal, name: [[[{"no": "such"}]]]})
        assert status == 400, name
        assert str(body["error"]["param"]).startswith(name), (name, body)


@pytest.mark.parametrize("path", BODIES)
async def test_answers_fit_their_documented_schema(gw: Deployment, path: str) -> None:
    doc, (_, minimal) = await served(gw), BODIES[path]
    asked: dict[str, object] = dict(minimal)
    if path == "/v1/completions":
        asked |= {"logprobs": 2, "echo": True}
    if path == "/v1/chat/completions":
        asked |= {"logprobs": True, "top_logprobs": 2, "model": MODEL}
    if path == "/generate":
        asked |= {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1}
    status, body = await gw.post(path, asked)
    assert status == 200
    check(doc, "post", path, "200", body)
    status, body = await gw.post(path, b"[]")
    check(doc, "post", path, "400", body)


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready", "/server_info", "/openapi.json"])
async def test_answers_of_get_routes_fit_too(gw: Deployment, path: str) -> None:
    check(await served(gw), "get", path, "200", (await gw.get(path))[1])


async def test_the_docs_page_needs_nothing_from_elsewhere(gw: Deployment) -> None:
    async with gw.session.get(gw.url + "/docs") as response:
        page = await response.text()
    assert "/v1/chat/completions" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def check(doc: dict[str, Any], method: str, path: str, status: str, body: object) -> None:
    schema = doc["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": doc["components"]}).validate(body)

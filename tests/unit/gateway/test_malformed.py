"""Whatever a client sends, the answer is a 4xx in OpenAI's shape that says what to change, and nothing is submitted."""

from __future__ import annotations

import asyncio
import gzip

import orjson
import pytest

from services.gateway.config import GatewayConfig
from tests.unit.gateway.deployment import Deployment, deployed

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
U = {"role": "user", "content": "hi"}


def chat(**fields: object) -> tuple[str, bytes]:
    return CHAT, orjson.dumps({"messages": [U], **fields})


def completion(**fields: object) -> tuple[str, bytes]:
    return COMPLETIONS, orjson.dumps({"prompt": "hi", **fields})


def native(**fields: object) -> tuple[str, bytes]:
    return GENERATE, orjson.dumps({"text": "hi", **fields})


def raw(text: bytes, path: str = CHAT) -> tuple[str, bytes]:
    return path, text


def message(content: bytes) -> tuple[str, bytes]:
    return CHAT, b'{"messages":[{"role":"user","content":' + content + b"}]}"


DEEP = b"[" * 5000 + b"]" * 5000
BODIES: dict[str, tuple[tuple[str, bytes], str | None]] = {
    # not a JSON object
    "empty body": (raw(b""), None),
    "white space": (raw(b"  \n"), None),
    "not JSON": (raw(b"hello"), None),
    "an array": (raw(b"[]"), None),
    "a string": (raw(b'"x"'), None),
    "null": (raw(b"null"), None),
    "cut off": (raw(b'{"messages": [{"role": "user", "content": "hi"'), None),
    "trailing garbage": (raw(b'{"messages": []} x'), None),
    "bad UTF-8": (message(b'"\xff\xfe"'), None),
    "surrogate bytes": (message(b'"\xed\xa0\x80"'), None),
    "lone high surrogate": (message(b'"\\ud800"'), None),
    "lone low surrogate": (message(b'"\\udc00x"'), None),
    "surrogate in a key": (raw(b'{"\\ud800": 1, "messages": []}'), None),
    "NaN": (raw(b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}'), None),
    "Infinity": (raw(b'{"messages": [{"role": "user", "content": "x"}], "top_p": Infinity}'), None),
    "a number over double": (raw(b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e999}'), None),
    "500 digits": (raw(b'{"messages": [], "seed": ' + b"9" * 500 + b"}"), None),
    "unparsable nesting": (raw(DEEP), None),
    "deep template arguments": (
        raw(b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": '
            + b"[" * 500 + b"]" * 500 + b"}}"), None,
    ),
    "deep unknown field": (raw(b'{"messages": [], "x": ' + b'{"a":' * 200 + b"1" + b"}" * 201), None),
    "comments": (raw(b'{"messages": [] /* none */}'), None),
    "UTF-16": (raw('{"messages": []}'.encode("utf-16")), None),
    # messages
    "no messages": (raw(b"{}"), "messages"),
    "empty messages": (chat(messages=[]), "messages"),
    "messages is a string": (chat(messages="hi"), "messages"),
    "messages is null": (chat(messages=None), "messages"),
    "a message is a string": (chat(messages=["hi"]), "messages[0]"),
    "no role": (chat(messages=[{"content": "x"}]), "messages[0].role"),
    "unknown role": (chat(messages=[{"role": "wizard", "content": "x"}]), "messages[0].role"),
    "role is a number": (chat(messages=[{"role": 1, "content": "x"}]), "messages[0].role"),
    "role is a list": (chat(messages=[{"role": [], "content": "x"}]), "messages[0].role"),
    "no content": (chat(messages=[{"role": "user"}]), "messages[0].content"),
    "null content of a user": (chat(messages=[{"role": "user", "content": None}]), "messages[0].content"),
    "content is a number": (chat(messages=[{"role": "user", "content": 1}]), "messages[0].content"),
    "an image without a URL": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        "messages[0].content[0].image_url.url",
    ),
    "a detail that is none": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "1"}}]}]),
        "messages[0].content[0].image_url.detail",
    ),
    "a sound": (
        chat(messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        "messages[0].content[0].type",
    ),
    "a part without text": (chat(messages=[{"role": "user", "content": [{"type": "text"}]}]),
                            "messages[0].content[0].text"),
    "continue without an assistant": (chat(continue_final_message=True), "messages"),
    "continue and open a turn": (
        chat(messages=[U, {"role": "assistant", "content": "a"}], continue_final_message=True,
             add_generation_prompt=True), "continue_final_message",
    ),
    # values
    "model is a number": (chat(model=1), "model"),
    "max_tokens negative": (chat(max_tokens=-1), "max_tokens"),
    "max_tokens a string": (chat(max_tokens="5"), "max_tokens"),
    "max_tokens a fraction": (chat(max_tokens=1.5), "max_tokens"),
    "max_tokens true": (chat(max_tokens=True), "max_tokens"),
    "max_tokens huge": (chat(max_tokens=2**63), "max_tokens"),
    "two limits that differ": (chat(max_tokens=1, max_completion_tokens=2), "max_tokens"),
    "min over max": (chat(max_tokens=1, min_tokens=2), "min_tokens"),
    "temperature negative": (chat(temperature=-0.1), "temperature"),
    "temperature huge": (chat(temperature=1e300), "temperature"),
    "temperature a string": (chat(temperature="hot"), "temperature"),
    "top_p zero": (chat(top_p=0), "top_p"),
    "top_p over 1": (chat(top_p=1.01), "top_p"),
    "top_k under -1": (chat(top_k=-2), "top_k"),
    "min_p over 1": (chat(min_p=2), "min_p"),
    "presence_penalty": (chat(presence_penalty=2.1), "presence_penalty"),
    "frequency_penalty": (chat(frequency_penalty=-3), "frequency_penalty"),
    "repetition_penalty": (chat(repetition_penalty=0), "repetition_penalty"),
    "seed over 64 bits": (chat(seed=2**64 - 1), "seed"),
    "seed a fraction": (chat(seed=0.5), "seed"),
    "last seed over 64 bits": (chat(seed=2**63 - 1, n=2), "seed"),
    "logit_bias a list": (chat(logit_bias=[1]), "logit_bias"),
    "logit_bias key": (chat(logit_bias={"a": 1}), "logit_bias"),
    "logit_bias negative key": (chat(logit_bias={"-1": 1}), "logit_bias"),
    "logit_bias value": (chat(logit_bias={"1": 101}), "logit_bias"),
    "logit_bias value type": (chat(logit_bias={"1": "x"}), "logit_bias.1"),
    "logit_bias size": (chat(logit_bias={str(i): 1 for i in range(2000)}), "logit_bias"),
    "stop empty": (chat(stop=""), "stop"),
    "stop has a number": (chat(stop=["a", 1]), "stop[1]"),
    "too many stops": (chat(stop=["x"] * 17), "stop"),
    "stop too long": (chat(stop="x" * 2000), "stop"),
    "stop_token_ids negative": (chat(stop_token_ids=[-1]), "stop_token_ids"),
    "n zero": (chat(n=0), "n"),
    "n negative": (chat(n=-5), "n"),
    "n too big": (chat(n=100_000), "n"),
    "stream a string": (chat(stream="yes"), "stream"),
    "stream_options without stream": (chat(stream_options={"include_usage": True}), "stream_options"),
    "top_logprobs without logprobs": (chat(top_logprobs=2), "top_logprobs"),
    "top_logprobs too many": (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    "logprobs a number": (chat(logprobs=3), "logprobs"),
    "template arguments a list": (chat(chat_template_kwargs=[]), "chat_template_kwargs"),
    "rid empty": (chat(rid=""), "rid"),
    "rid with a line break": (chat(rid="a\r\nSet-Cookie: x"), "rid"),
    "rid not ASCII": (chat(rid="é"), "rid"),
    "rid too long": (chat(rid="x" * 101), "rid"),
    "priority huge": (chat(priority=2**40), "priority"),
    "cache_salt long": (chat(cache_salt="x" * 1000), "cache_salt"),
    "timeout zero": (chat(timeout_s=0), "timeout_s"),
    # known, not supported
    "functions": (chat(functions=[{"name": "f"}]), "functions"),
    "audio": (chat(audio={"voice": "x"}), "audio"),
    "modalities": (chat(modalities=["text", "audio"]), "modalities"),
    "inner whitespace pattern": (
        chat(structured_outputs={"json": {}, "whitespace_pattern": " *"}), "structured_outputs.whitespace_pattern",
    ),
    "whitespace pattern": (chat(guided_whitespace_pattern=" *"), "guided_whitespace_pattern"),
    "best_of": (completion(best_of=3), "best_of"),
    "suffix": (completion(suffix="end"), "suffix"),
    # prompts
    "no prompt": (raw(b"{}", COMPLETIONS), "prompt"),
    "empty prompt": (completion(prompt=""), "prompt"),
    "empty prompt list": (completion(prompt=[]), "prompt"),
    "one empty prompt": (completion(prompt=["a", ""]), "prompt[1]"),
    "empty id list": (completion(prompt=[[]]), "prompt"),
    "prompt is an object": (completion(prompt={}), "prompt"),
    "mixed prompt list": (completion(prompt=["a", 1]), "prompt[0]"),
    "negative id": (completion(prompt=[1, -1]), "prompt"),
    "id too large": (completion(prompt=[[1], [2**40]]), "prompt[1]"),
    "id a fraction": (completion(prompt=[1.5]), "prompt[0]"),
    "too many prompts": (completion(prompt=["a"] * 5), "prompt"),
    "completion logprobs": (completion(logprobs=-1), "logprobs"),
    "completion logprobs true": (completion(logprobs=True), "logprobs"),
    # native
    "neither text nor ids": (raw(b"{}", GENERATE), "text"),
    "both text and ids": (native(input_ids=[1]), "text"),
    "unknown field": (native(textt="x"), "textt"),
    "endless field name": (native(**{"x" * 1_000_000: 1}), "xxx"),
    "unknown parameter": (native(sampling_params={"max_tokens": 3}), "sampling_params.max_tokens"),
    "native max_new_tokens": (native(sampling_params={"max_new_tokens": -1}), "sampling_params.max_new_tokens"),
    "native grammar": (native(sampling_params={"regex": ["a"]}), "sampling_params.regex"),
    "native grammars": (native(sampling_params={"regex": "a", "ebnf": "b"}), "sampling_params.ebnf"),
    "params count": (native(sampling_params=[{}, {}]), "sampling_params"),
    "rid count": (native(rid=["a", "b"]), "rid"),
    "start negative": (native(return_logprob=True, logprob_start_len=-2), "logprob_start_len"),
    "native top": (native(return_logprob=True, top_logprobs_num=99), "top_logprobs_num"),
    "two seeds": (native(sampling_params={"seed": 1, "sampling_seed": 2}), "sampling_params.seed"),
    "tokenize nothing": (("/tokenize", b"{}"), "prompt"),
    "detokenize text": (("/detokenize", b'{"tokens": "a"}'), "tokens"),
    "detokenize negative": (("/detokenize", b'{"tokens": [-1]}'), "tokens"),
}  # fmt: skip


async def test_every_malformed_body_is_a_400_that_names_the_field_and_the_next_request_is_fine() -> None:
    async with deployed(GatewayConfig(max_prompts_per_request=4)) as gw:
        for name, ((path, data), param) in BODIES.items():
            status, body = await gw.post(path, data)
            assert status == 400, f"{name}: {status} {body}"
            error = body["error"]
            assert error["code"] == "invalid_request", name
            assert error["type"] == "invalid_request_error", name
            assert 10 < len(error["message"]) < 3000, name
            if param is not None:
                assert error["param"] == param or str(error["param"]).startswith(param), f"{name}: {error}"
        assert not gw.tokenizer.requests
        assert (await gw.post(*chat()))[0] == 200
        assert len(gw.service.table) == 0


def test_the_table_is_large() -> None:
    assert len(BODIES) >= 60


async def test_neutral_values_of_unsupported_fields_and_unknown_fields_are_fine(gw: Deployment) -> None:
    neutral = {
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"],
        "parallel_tool_calls": True, "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "audio": None,
        "n": None, "temperature": None, "stop": None, "stream_options": None, "logit_bias": None,
    }  # fmt: skip
    status, body = await gw.post(*chat(**neutral))
    assert status == 200, body


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "nonsense", ""])
async def test_a_wrong_content_type_is_tolerated(gw: Deployment, content_type: str) -> None:
    path, data = chat()
    status, _ = await gw.post(path, data, headers={"Content-Type": content_type})
    assert status == 200


async def test_a_body_over_the_limit_is_413_whether_announced_or_not() -> None:
    async with deployed(GatewayConfig(max_body_bytes=10_000)) as gw:
        path, data = chat(user="x" * 20_000)
        status, body = await gw.post(path, data)
        assert (status, body["error"]["code"]) == (413, "too_large")

        async def pieces() -> object:
            for i in range(0, len(data), 1000):
                yield data[i : i + 1000]

        async with gw.session.post(gw.url + path, data=pieces()) as response:
            assert response.status == 413
        bomb = gzip.compress(b" " * 1_000_000 + data)
        async with gw.session.post(gw.url + path, data=bomb, headers={"Content-Encoding": "gzip"}) as response:
            assert response.status == 413


async def test_a_broken_compressed_body_is_400(gw: Deployment) -> None:
    async with gw.session.post(gw.url + CHAT, data=b"not gzip", headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 400


@pytest.mark.parametrize(
    "head",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_malformed_http_is_400_and_logs_no_traceback(
    gw: Deployment, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gw.service.port)
    writer.write(head)
    assert b" 400 " in await reader.readline()
    writer.close()
    assert not caplog.records
    assert (await gw.get("/health"))[0] == 200


async def test_a_prompt_over_the_message_limit_is_413(gw: Deployment) -> None:
    status, body = await gw.post(*completion(prompt="x" * (5 * 1024 * 1024)))
    assert (status, body["error"]["code"]) == (413, "too_large")

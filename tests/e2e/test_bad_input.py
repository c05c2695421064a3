"""Malformed requests against the whole stack: a clear 4xx each, and the services live on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.stack import Stack

USER = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"

BODIES: list[tuple[str, Any]] = [
    (CHAT, b""), (CHAT, b"{"), (CHAT, b"[]"), (CHAT, b"null"), (CHAT, b'"text"'), (CHAT, b"\xff\xfe{}"),
    (CHAT, b'{"messages": NaN}'), (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    (CHAT, b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    (CHAT, {}), (CHAT, {"messages": []}), (CHAT, {"messages": "hi"}), (CHAT, {"messages": [1]}),
    (CHAT, {"messages": [{"role": "user"}]}), (CHAT, {"messages": [{"content": "hi"}]}),
    (CHAT, {"messages": [{"role": "emperor", "content": "hi"}]}),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    (CHAT, {"messages": USER, "temperature": "hot"}), (CHAT, {"messages": USER, "temperature": -1}),
    (CHAT, {"messages": USER, "temperature": 1e308}), (CHAT, {"messages": USER, "top_p": 0}),
    (CHAT, {"messages": USER, "top_p": 1.5}), (CHAT, {"messages": USER, "top_k": -7}),
    (CHAT, {"messages": USER, "min_p": 2}), (CHAT, {"messages": USER, "max_tokens": -1}),
    (CHAT, {"messages": USER, "max_tokens": 1.5}), (CHAT, {"messages": USER, "max_tokens": "many"}),
    (CHAT, {"messages": USER, "max_tokens": 10**30}), (CHAT, {"messages": USER, "n": 0}),
    (CHAT, {"messages": USER, "n": 100_000}), (CHAT, {"messages": USER, "seed": "x"}),
    (CHAT, {"messages": USER, "stop": [""]}), (CHAT, {"messages": USER, "stop": ["x"] * 1000}),
    (CHAT, {"messages": USER, "stop": {"a": 1}}), (CHAT, {"messages": USER, "logit_bias": {"cat": 1}}),
    (CHAT, {"messages": USER, "logit_bias": {"99999999": 1}}), (CHAT, {"messages": USER, "logit_bias": {"5": 1e9}}),
    (CHAT, {"messages": USER, "presence_penalty": 9}), (CHAT, {"messages": USER, "repetition_penalty": 0}),
    (CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 1000}), (CHAT, {"messages": USER, "stream": "yes"}),
    (CHAT, {"messages": USER, "model": "no-such-model"}), (CHAT, {"messages": USER, "stop_token_ids": [10**7]}),
    (CHAT, {"messages": USER, "min_tokens": 10, "max_tokens": 5}),
    (COMPLETIONS, {}), (COMPLETIONS, {"prompt": ""}), (COMPLETIONS, {"prompt": []}), (COMPLETIONS, {"prompt": [-1]}),
    (COMPLETIONS, {"prompt": [10**9]}), (COMPLETIONS, {"prompt": [[]]}), (COMPLETIONS, {"prompt": {"a": 1}}),
    (COMPLETIONS, {"prompt": "word " * 20_000}), (COMPLETIONS, {"prompt": "a", "logprobs": -1}),
    (GENERATE, {}), (GENERATE, {"text": "a", "input_ids": [1]}), (GENERATE, {"text": 7}),
    (GENERATE, {"text": "a", "sampling_params": {"max_new_tokens": -5}}),
    (GENERATE, {"text": "a", "sampling_params": 3}),
    (GENERATE, {"input_ids": [10**8]}), (GENERATE, {"text": ["a"], "sampling_params": [{}, {}]}),
]  # fmt: skip


def test_there_are_enough_of_them() -> None:
    assert len(BODIES) >= 40


@pytest.mark.parametrize(("path", "body"), BODIES, ids=range(len(BODIES)))
def test_a_malformed_body_is_refused_with_a_reason(stack: Stack, path: str, body: Any) -> None:
    status, answer = stack.post(path, body)
    assert 400 <= status < 500, answer
    error = answer["error"]
    assert len(error["message"]) > 10
    assert error["type"]


def test_a_body_of_ten_megabytes_is_refused_by_size_or_length(stack: Stack) -> None:
    status, answer = stack.post(COMPLETIONS, {"prompt": "x" * 10_000_000})
    assert status in (400, 413), answer


def test_the_next_request_is_fine(stack: Stack) -> None:
    assert stack.chat("Say hi.")["choices"][0]["message"]["content"]
    assert stack.get("/server_info")

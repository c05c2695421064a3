"""What backends put on the wire and make of answers; a scripted HTTP server stands for the other side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import rhizome as rz
from rhizome.lang.backends.native import generate_body
from rhizome.lang.backends.nats import requests_of
from rhizome.lang.conversation import Prompt
from rhizome.lang.sampling import SamplingParams

Reply = Callable[[str, Any], Any]


@asynccontextmanager
async def serving(reply: Reply) -> AsyncIterator[tuple[str, list[tuple[str, Any]]]]:
    """A server whose answer to (path, body) is what `reply` gives: JSON, a response, or a list of events."""
    seen: list[tuple[str, Any]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        seen.append((request.path, body))
        answer = reply(request.path, body)
        if isinstance(answer, web.Response):
            return answer
        if isinstance(answer, list) and body and body.get("stream"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for event in answer:
                await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
            return response
        return web.json_response(answer)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/"), seen


def generation(text: str, finish: str | None = "stop") -> dict[str, Any]:
    meta = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_tokens": 1,
        "finish_reason": finish and {"type": finish},
    }
    return {"text": text, "meta_info": meta}


@rz.function
async def ask(s, **_):
    s += "Q:" + rz.gen("a", max_tokens=5, stop="\n", regex="a+", top_k=3)


def test_a_body_of_generate_says_only_what_was_given() -> None:
    params = SamplingParams(max_new_tokens=5, stop="\n", ebnf="root ::= x", seed=3, return_logprob=True).resolved()
    body = generate_body(Prompt("Q:"), params, with_tokens=False)
    body.pop("rid")
    assert body == {
        "text": "Q:", "return_logprob": True,
        "sampling_params": {
            "max_new_tokens": 5, "temperature": 1.0, "stop": ["\n"], "ebnf": "root ::= x", "sampling_seed": 3,
        },
    }  # fmt: skip


async def test_an_endpoint_generates_and_streams() -> None:
    def reply(path: str, body: Any) -> Any:
        if path == "/get_model_info":
            return {"model_path": "Qwen/Qwen3-8B"}
        if path == "/tokenize":
            return web.Response(status=404, text="no such route")
        if body.get("stream"):
            return [generation("a", None), generation("ab", None), generation("abc")]
        return generation("abc")

    async with serving(reply) as (url, seen):
        backend = rz.RuntimeEndpoint(url)
        assert (await backend.chat_template()).name == "qwen"  # SGLang's server tells no template
        state = await ask(backend=backend, temperature=0)
        assert (await state["a"], state.report()["cached_tokens"]) == ("abc", 1)
        streamed = await ask.arun(backend=backend, stream=True)
        assert [p async for p in streamed.text_async_iter("a")][-1].endswith("c")
        assert await streamed.text() == "Q:abc"
        assert seen[-1][1]["sampling_params"]["top_k"] == 3
        await backend.aclose()


async def test_refusals_are_errors_with_the_servers_words_and_busy_servers_are_tried_again() -> None:
    answers = iter([503, 429, 200, 400])

    def reply(path: str, body: Any) -> Any:
        status = next(answers)
        if status == 200:
            return generation("x")
        return web.json_response({"error": {"message": f"because {status}"}}, status=status)

    async with serving(reply) as (url, seen):
        backend = rz.RuntimeEndpoint(url, chat_template_name="chatml")
        assert await (await ask(backend=backend))["a"] == "x"
        assert len(seen) == 3
        with pytest.raises(rz.ProgramError, match=r"gen\('a'\) failed: 400: because 400"):
            await (await ask(backend=backend))["a"]
        await backend.aclose()
    unreachable = rz.RuntimeEndpoint(url, chat_template_name="chatml", max_retries=0)
    with pytest.raises(rz.ProgramError, match="Cannot connect"):
        await (await ask(backend=unreachable))["a"]
    await unreachable.aclose()


async def test_cancelling_closes_the_connection() -> None:
    gone, arrived = asyncio.Event(), asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError("unreachable")

    app = web.Application()
    app.router.add_post("/generate", handle)
    async with TestServer(app, handler_cancellation=True) as server:
        backend = rz.RuntimeEndpoint(str(server.make_url("")), chat_template_name="chatml")
        task = asyncio.create_task(ask(backend=backend))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
        await backend.aclose()


async def test_select_scores_from_the_token_that_the_prompt_alone_does_not_have() -> None:
    """A choice may merge with the prompt's last token: here "ab" + "c" is the tokens a, bc."""
    rows = {"ab": [1, 2], "abc": [1, 3], "abd": [1, 2, 4]}
    logprobs = {1: -0.5, 2: -3.0, 3: -1.0, 4: -2.0}

    def one(ids: list[int], start: int) -> Any:
        entries = [[None if i == 0 else logprobs[t], t, str(t)] for i, t in enumerate(ids)][start:]
        return {"text": "", "meta_info": {"prompt_tokens": len(ids), "input_token_logprobs": entries}}

    def reply(path: str, body: Any) -> Any:
        if isinstance(body.get("text"), str):
            return one(rows[body["text"]], 0)
        texts = [rows[t] for t in body["text"]] if "text" in body else body["input_ids"]
        return [one(ids, body["logprob_start_len"]) for ids in texts]

    async with serving(reply) as (url, _):
        backend = rz.RuntimeEndpoint(url, chat_template_name="chatml")
        decision, _ = await backend.select(Prompt("ab"), ["c", "d"], rz.token_length_normalized)
        assert decision.decision == "c"
        assert decision.meta_info["normalized_prompt_logprobs"] == [-1.0, -2.0]
        decision, _ = await backend.select(Prompt("ab"), ["c", "d"], rz.unconditional_likelihood_normalized)
        assert decision.meta_info["unconditional_token_logprobs"] == [[[None, 3, "3"]], [[None, 4, "4"]]]
        await backend.aclose()


async def test_tools_go_through_the_chat_route() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}

    def reply(path: str, body: Any) -> Any:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 4}}

    @rz.function
    async def program(s):
        s += rz.user("1 + 1?")
        s += rz.assistant(rz.gen("a", tools=[{"type": "function", "function": {"name": "add"}}]))

    async with serving(reply) as (url, seen):
        backend = rz.RuntimeEndpoint(url, chat_template_name="chatml")
        state = await program(backend=backend)
        assert (await state.get_meta_info("a"))["tool_calls"] == [call]
        assert seen[0][0] == "/v1/chat/completions"
        assert seen[0][1]["messages"] == [{"role": "user", "content": "1 + 1?"}]
        await backend.aclose()


async def test_anthropic_style_messages() -> None:
    def reply(path: str, body: Any) -> Any:
        if body.get("stream"):
            return [
                {"type": "message_start", "message": {"usage": {"input_tokens": 9, "cache_read_input_tokens": 4}}},
                {"type": "content_block_delta", "delta": {"type": "text_delta", "text": " Bo"}},
                {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "b"}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
            ]
        usage = {"input_tokens": 9, "output_tokens": 2}
        return {"content": [{"type": "text", "text": " Bob"}], "stop_reason": "max_tokens", "usage": usage}

    @rz.function
    async def program(s):
        s += rz.system("Be short.")
        s += rz.user("Who?")
        s += rz.assistant("Name:" + rz.gen("a", max_tokens=7, stop="\n"))

    async with serving(reply) as (url, seen):
        backend = rz.Anthropic("some-model", "key", base_url=url)
        state = await program(backend=backend, temperature=0.5)
        assert await state["a"] == " Bob"
        assert (await state.get_meta_info("a"))["finish_reason"] == {"type": "length"}
        assert seen[0] == ("/v1/messages", {
            "model": "some-model", "max_tokens": 7, "temperature": 0.5, "system": "Be short.", "stop_sequences": ["\n"],
            "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Name:"}],
        })  # fmt: skip
        streamed = await program.arun(backend=backend, stream=True)
        assert await streamed.get_var("a") == " Bob"
        assert streamed.report()["cached_tokens"] == 4
        await backend.aclose()


async def test_openai_bodies_have_the_dialects_fields() -> None:
    plain = rz.OpenAI("m", False, api_key="x")
    with pytest.raises(rz.Unsupported, match=r"the OpenAI API has no regex.*dialect='rhizome'"):
        plain._body(Prompt("Q"), SamplingParams(regex="a").resolved(), False)
    own = rz.OpenAI("m", True, api_key="x", dialect="rhizome", base_url="http://h/v1")
    prompt = Prompt("", [{"role": "user", "content": "Q"}], "assistant", "A:")
    assert own._body(prompt, SamplingParams(regex="a", top_k=2).resolved(), True) == {
        "model": "m", "temperature": 1.0, "max_tokens": 128, "logprobs": True,
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A:"}],
        "extra_body": {"regex": "a", "top_k": 2, "continue_final_message": True, "add_generation_prompt": False},
    }  # fmt: skip
    with pytest.raises(rz.Unsupported, match="in the assistant's turn"):
        own._body(Prompt("Q", [{"role": "user", "content": "Q"}]), SamplingParams().resolved(), False)


def test_a_native_body_becomes_messages_to_a_tokenizer() -> None:
    body = {
        "text": ["a", "b"],
        "return_logprob": True,
        "sampling_params": {"n": 2, "sampling_seed": 5, "regex": "x", "top_k": 1},
    }
    requests, many = requests_of(body)
    assert many
    assert [(r["text"], r["sampling"]) for r in requests] == [
        ("a", {"top_k": 1, "seed": 5}), ("a", {"top_k": 1, "seed": 6}),
        ("b", {"top_k": 1, "seed": 5}), ("b", {"top_k": 1, "seed": 6}),
    ]  # fmt: skip
    assert all(r["grammar"] == {"kind": "regex", "source": "x"} and r["return_logprob"] for r in requests)
    assert len({r["rid"] for r in requests}) == 4


TOOLS = [{"type": "function", "function": {"name": "add"}}]


def parameters(**more: Any) -> SamplingParams:
    return SamplingParams(**more).resolved()


async def test_what_a_route_with_tools_cannot_do_is_refused_by_name() -> None:
    answer = {"choices": [{"message": {"role": "assistant", "content": "2"}, "finish_reason": "stop"}]}
    prompt = Prompt("Q", [{"role": "user", "content": "Q"}], "assistant")
    async with serving(lambda path, body: answer) as (url, seen):
        backend = rz.RuntimeEndpoint(url, chat_template_name="chatml")
        await backend.generate(
            prompt,
            parameters(tools=TOOLS, repetition_penalty=1.1, stop_token_ids=[5], min_new_tokens=2, ignore_eos=True),
        )
        sent = {name: seen[0][1][name] for name in ("repetition_penalty", "stop_token_ids", "min_tokens", "ignore_eos")}
        assert sent == {"repetition_penalty": 1.1, "stop_token_ids": [5], "min_tokens": 2, "ignore_eos": True}
        with pytest.raises(rz.Unsupported, match="return_logprob"):
            await backend.generate(prompt, parameters(tools=TOOLS, return_logprob=True))
        with pytest.raises(rz.Unsupported, match="not streamed"):
            await anext(aiter(backend.stream(prompt, parameters(tools=TOOLS))))
        await backend.aclose()
    with pytest.raises(rz.Unsupported, match="RuntimeEndpoint"):
        await rz.NatsEndpoint().generate(prompt, parameters(tools=TOOLS))


async def test_anthropic_style_messages_choose_tools_and_do_not_stream_them() -> None:
    backend = rz.Anthropic("m", "key")
    prompt = Prompt("Q", [{"role": "user", "content": "Q"}], "assistant")
    named = {"type": "function", "function": {"name": "add"}}
    for choice, sent in (
        ("required", {"type": "any"}),
        ("auto", {"type": "auto"}),
        (named, {"type": "tool", "name": "add"}),
    ):
        assert backend._body(prompt, parameters(tools=TOOLS, tool_choice=choice))["tool_choice"] == sent
    with pytest.raises(rz.Unsupported, match="not streamed"):
        await anext(aiter(backend.stream(prompt, parameters(tools=TOOLS))))


async def test_a_stream_without_a_finish_broke_off() -> None:
    pieces = {
        "/generate": [generation("a", None)],
        "/v1/messages": [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}],
        "/v1/chat/completions": [
            {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [
                {"index": 0, "delta": {"content": "a"}, "finish_reason": None}]},
        ],
    }  # fmt: skip
    prompt = Prompt("Q", [{"role": "user", "content": "Q"}], "assistant")
    async with serving(lambda path, body: pieces[path]) as (url, _):
        for backend in (
            rz.RuntimeEndpoint(url, chat_template_name="chatml"),
            rz.Anthropic("m", "key", base_url=url),
            rz.OpenAI("m", api_key="x", base_url=url + "/v1"),
        ):
            with pytest.raises(rz.BackendError, match="the answer broke off"):
                async with asyncio.timeout(10):
                    assert "".join([d.text async for d in backend.stream(prompt, parameters())]) == "a"
            await backend.aclose()


async def test_an_answer_that_is_late_names_the_limit() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if (await request.json()).get("stream"):
            await response.prepare(request)
        await asyncio.sleep(2)
        return response

    app = web.Application()
    app.router.add_post("/generate", handle)
    async with TestServer(app) as server, asyncio.timeout(10):
        backend = rz.RuntimeEndpoint(str(server.make_url("")), chat_template_name="chatml", timeout_s=0.2)
        with pytest.raises(rz.BackendError, match=r"timeout_s=0\.2"):
            await backend.generate(Prompt("Q"), parameters())
        with pytest.raises(rz.BackendError, match=r"timeout_s=0\.2"):
            await anext(aiter(backend.stream(Prompt("Q"), parameters())))
        await backend.aclose()


def test_parameters_that_ask_for_nothing_are_no_extra() -> None:
    plain = rz.OpenAI("m", False, api_key="x")
    off = parameters(ignore_eos=False, min_p=0.0, min_new_tokens=0, top_k=-1)
    assert "extra_body" not in plain._body(Prompt("Q"), off, False)


async def test_a_rendered_conversation_lacks_what_the_server_puts_before_every_text() -> None:
    def reply(path: str, body: Any) -> Any:
        if path == "/detokenize":
            return {"text": " ".join(map(str, body["tokens"]))}
        if "messages" in body:
            return {"tokens": [1, 7, 8]}
        return {"tokens": [1, 5] if body["add_special_tokens"] else [5]}

    async with serving(reply) as (url, _):
        backend = rz.RuntimeEndpoint(url)
        assert await backend.render([{"role": "user", "content": "x"}]) == "7 8"
        await backend.aclose()

"""The official `openai` client against the gateway: what it sends is understood, what it gets parses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI

from services.gateway.config import GatewayConfig
from shared import messages as m
from shared.errors import ContextLengthExceeded, Overloaded
from tests.unit.gateway.deployment import MODEL, Deployment, Script, deployed

TEXT = 'Hello "world" é'
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def gw() -> AsyncIterator[Deployment]:
    async with deployed(GatewayConfig(api_key=("sk-test",))) as deployment:
        yield deployment


@pytest.fixture
async def client(gw: Deployment) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=gw.url + "/v1", api_key="sk-test", max_retries=0) as client:
        yield client


async def test_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI, max_completion_tokens=5)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 10
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer._request_id is not None
    assert answer.id == f"chatcmpl-{answer._request_id}"


async def test_chat_stream_with_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert len({c.id for c in chunks}) == 1


async def test_the_client_s_own_stream_accumulator_agrees_with_the_plain_answer(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=MODEL, messages=HI, logprobs=True, top_logprobs=2) as stream:
        final = await stream.get_final_completion()
    plain = await client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=2)
    assert final.choices[0].message.content == plain.choices[0].message.content == TEXT
    assert final.choices[0].logprobs.content == plain.choices[0].logprobs.content
    assert plain.choices[0].logprobs.content[1].top_logprobs[1].token == "alt1"


async def test_two_choices(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI, n=2, seed=1)
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.usage.prompt_tokens == 7


async def test_completions_with_echo_and_logprobs(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt="Once upon", echo=True, logprobs=1, max_tokens=3)
    choice = answer.choices[0]
    assert choice.text == "Once upon" + TEXT
    assert choice.logprobs.tokens[:2] == ["Once", "upon"]
    assert choice.logprobs.token_logprobs[0] is None
    assert answer.object == "text_completion"


async def test_completions_of_several_prompts_and_streamed(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt=[[1, 2], [3]], n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    stream = await client.completions.create(model=MODEL, prompt="a", stream=True)
    assert "".join([c.choices[0].text async for c in stream]) == TEXT


async def test_extensions_travel_in_extra_body(client: AsyncOpenAI, gw: Deployment) -> None:
    await client.chat.completions.create(model=MODEL, messages=HI, extra_body={"top_k": 5, "min_tokens": 2})
    assert gw.tokenizer.requests[0].sampling.top_k == 5
    assert gw.tokenizer.requests[0].sampling.min_new_tokens == 2


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).created == 1_700_000_000


async def test_errors_become_the_client_s_exceptions(client: AsyncOpenAI, gw: Deployment) -> None:
    async def ask(**fields: object) -> None:
        await client.chat.completions.create(**{"model": MODEL, "messages": HI, **fields})

    with pytest.raises(openai.BadRequestError) as bad:
        await ask(temperature=-1)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_request")
    with pytest.raises(openai.NotFoundError) as absent:
        await ask(model="nope")
    assert absent.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as tools:
        await ask(tools=[{"type": "function", "function": {"name": "no name", "parameters": {}}}])
    assert tools.value.param == "tools[0].function.name"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()
    gw.tokenizer.script = lambda _: Script(refuse=ContextLengthExceeded("too long", param="messages"))
    with pytest.raises(openai.BadRequestError) as long:
        await ask()
    assert long.value.code == "context_length_exceeded"
    gw.tokenizer.script = lambda _: Script(refuse=Overloaded("full"))
    with pytest.raises(openai.RateLimitError):
        await ask(stream=True)


async def test_an_error_in_the_middle_of_a_stream_is_raised_by_the_client(client: AsyncOpenAI, gw: Deployment) -> None:
    gate = asyncio.Event()
    error = m.ErrorInfo("unavailable", "worker lost")
    finish = m.TextDelta("", 0, finish_reason="error", error=error)
    gw.tokenizer.script = lambda _: Script(finish=finish, gate=gate)
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    await anext(stream)
    gate.set()
    with pytest.raises(openai.APIError, match="worker lost"):
        await drain(stream)


async def drain(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


async def test_closing_a_stream_aborts_the_generation(client: AsyncOpenAI, gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(gate=asyncio.Event())
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    await anext(stream)
    await stream.close()
    await gw.tokenizer.abort_seen.wait()

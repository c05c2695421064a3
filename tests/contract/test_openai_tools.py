"""The official client's helpers for structured output and tools: what they send is understood, what they get parses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import orjson
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from shared import messages as m
from tests.unit.gateway.deployment import MODEL, Deployment, Script, deployed, gain

HI: list[Any] = [{"role": "user", "content": "hi"}]
END = m.TextDelta("", 0, finish_reason="tool_calls")


class City(BaseModel):
    name: str
    size: Literal["small", "large"]


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str


class Add(BaseModel):
    """The sum of two numbers."""

    a: int
    b: int


WEATHER = openai.pydantic_function_tool(GetWeather, name="get_weather")
ADD = openai.pydantic_function_tool(Add, name="add")


@pytest.fixture
async def gw() -> AsyncIterator[Deployment]:
    async with deployed() as deployment:
        yield deployment


@pytest.fixture
async def client(gw: Deployment) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=gw.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def call(index: int, name: str, arguments: str) -> list[str | m.TextDelta]:
    """A call whose arguments come in two pieces."""
    head = m.ToolCallDelta(index, f"call_{index}", name, arguments[:3])
    return [gain("", "", head), gain("", "", m.ToolCallDelta(index, arguments=arguments[3:]))]


async def test_parse_sends_the_model_s_schema_and_gets_an_instance(client: AsyncOpenAI, gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(pieces=['{"name":"Par', 'is","size":"large"}'])
    answer = await client.chat.completions.parse(model=MODEL, messages=HI, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Paris", size="large")
    assert answer.choices[0].message.refusal is None
    grammar = gw.tokenizer.requests[0].grammar
    assert grammar is not None
    assert grammar.kind == "json_schema"
    schema = orjson.loads(grammar.source)
    assert list(schema["properties"]) == ["name", "size"]
    assert schema["additionalProperties"] is False


async def test_the_stream_helper_parses_the_model_at_the_end(client: AsyncOpenAI, gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(pieces=['{"name":"Par', 'is","size":"large"}'])
    async with client.chat.completions.stream(model=MODEL, messages=HI, response_format=City) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == City(name="Paris", size="large")
    assert {"content.delta", "content.done"} <= kinds


@pytest.mark.parametrize("form", [{"type": "json_object"}, {"type": "text"}])
async def test_plain_response_formats(client: AsyncOpenAI, gw: Deployment, form: Any) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI, response_format=form)
    assert answer.choices[0].message.content
    grammar = gw.tokenizer.requests[0].grammar
    assert (None if grammar is None else grammar.kind) == (None if form["type"] == "text" else "json_object")


async def test_extra_body_carries_the_grammars_of_other_servers(client: AsyncOpenAI, gw: Deployment) -> None:
    for extra in ({"regex": "[a-z]+"}, {"guided_regex": "[a-z]+"}, {"structured_outputs": {"regex": "[a-z]+"}}):
        await client.chat.completions.create(model=MODEL, messages=HI, extra_body=extra)
        await client.completions.create(model=MODEL, prompt="hi", extra_body=extra)
    assert {(r.grammar.kind, r.grammar.source) for r in gw.tokenizer.requests if r.grammar} == {("regex", "[a-z]+")}
    assert len(gw.tokenizer.requests) == 6


async def test_parse_gives_the_arguments_of_a_call_as_an_instance(client: AsyncOpenAI, gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(pieces=call(0, "get_weather", '{"city": "Paris"}'), finish=END)
    answer = await client.chat.completions.parse(
        model=MODEL, messages=HI, tools=[WEATHER, ADD], tool_choice="required", parallel_tool_calls=False
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].function.parsed_arguments == GetWeather(city="Paris")
    chat = gw.tokenizer.requests[0].chat
    assert chat is not None
    assert (chat.tool_choice, chat.parallel_tool_calls) == ("required", False)
    assert [(t["function"]["name"], t["function"]["strict"]) for t in chat.tools] == [
        ("get_weather", True), ("add", True),
    ]  # fmt: skip


async def test_the_stream_helper_adds_up_two_calls_and_reasoning(client: AsyncOpenAI, gw: Deployment) -> None:
    pieces = [gain("", "Let me"), gain("", " think."), "Sure.", *call(0, "get_weather", '{"city": "Paris"}'),
              *call(1, "add", '{"a": 1, "b": 2}')]  # fmt: skip
    gw.tokenizer.script = lambda _: Script(pieces=pieces, finish=END)
    events = []
    async with client.chat.completions.stream(
        model=MODEL, messages=HI, tools=[WEATHER, ADD], stream_options={"include_usage": True}
    ) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "Sure."
    assert message.reasoning_content == "Let me think."
    assert [c.function.parsed_arguments for c in message.tool_calls or []] == [GetWeather(city="Paris"), Add(a=1, b=2)]
    assert [c.id for c in message.tool_calls or []] == ["call_0", "call_1"]
    assert final.choices[0].finish_reason == "tool_calls"
    done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    assert [e.parsed_arguments for e in done] == [GetWeather(city="Paris"), Add(a=1, b=2)]


async def test_a_named_function_is_the_only_choice(client: AsyncOpenAI, gw: Deployment) -> None:
    named: Any = {"type": "function", "function": {"name": "add"}}
    await client.chat.completions.create(model=MODEL, messages=HI, tools=[WEATHER, ADD], tool_choice=named)
    chat = gw.tokenizer.requests[0].chat
    assert chat is not None
    assert (chat.tool_choice, chat.tool_name, chat.parallel_tool_calls) == ("required", "add", False)


def plan(request: m.GenerateRequest) -> Script:
    """A model that asks for the weather of two cities, then for a sum, then answers with both."""
    assert request.chat is not None
    results = [message["content"] for message in request.chat.messages if message["role"] == "tool"]
    if not results:
        pieces = [*call(0, "get_weather", '{"city": "Oslo"}'), *call(1, "get_weather", '{"city": "Rome"}')]
        return Script(pieces=pieces, finish=END)
    if len(results) == 2:
        arguments = orjson.dumps({"a": int(results[0]), "b": int(results[1])}).decode()
        return Script(pieces=["Adding. ", *call(0, "add", arguments)], finish=END)
    return Script(pieces=["Together ", results[-1]])


async def test_a_loop_with_two_tools(client: AsyncOpenAI, gw: Deployment) -> None:
    gw.tokenizer.script = plan
    degrees = {"Oslo": 3, "Rome": 18}
    tools = {"get_weather": lambda a: degrees[a["city"]], "add": lambda a: a["a"] + a["b"]}
    messages = list(HI)
    for _ in range(5):
        answer = await client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER, ADD])
        message = answer.choices[0].message
        messages.append(message)
        if answer.choices[0].finish_reason != "tool_calls":
            break
        for each in message.tool_calls or []:
            result = tools[each.function.name](orjson.loads(each.function.arguments))
            messages.append({"role": "tool", "tool_call_id": each.id, "content": str(result)})
    assert message.content == "Together 21"
    assert len(gw.tokenizer.requests) == 3
    last = gw.tokenizer.requests[-1].chat
    assert last is not None
    assert [x["role"] for x in last.messages] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert last.messages[1]["tool_calls"][1]["function"]["arguments"] == '{"city": "Rome"}'
    assert last.messages[3]["tool_call_id"] == "call_1"
    assert last.messages[4]["content"] == "Adding. "

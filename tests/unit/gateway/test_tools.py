"""Tools, tool calls and reasoning of chat completions: what reaches the tokenizer and what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from shared import messages as m
from shared.errors import InvalidRequest
from tests.unit.gateway.deployment import Deployment, Script, gain

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"parameters": PARAMETERS, "name": "get_weather", "strict": True}}
TIME = {"type": "function", "function": {"name": "time.now-1", "description": "The time."}}
END = m.TextDelta("", 0, finish_reason="tool_calls")
PIECES: list[str | m.TextDelta] = [
    gain("", "So"),
    gain("Let me", " it is."),
    " see.",
    gain("", "", m.ToolCallDelta(0, "call_1", "get_weather", '{"ci')),
    gain("", "", m.ToolCallDelta(0, arguments='ty": "Paris"}'), m.ToolCallDelta(1, "call_2", "time.now-1", "{}")),
]


async def test_tools_reach_the_tokenizer_in_the_order_that_templates_know(gw: Deployment) -> None:
    status, _ = await gw.post(CHAT, {**HI, "tools": [WEATHER, TIME]})
    assert status == 200
    chat = gw.tokenizer.requests[0].chat
    assert chat is not None
    assert [list(t["function"]) for t in chat.tools] == [
        ["name", "parameters", "strict"], ["name", "description", "parameters"],
    ]  # fmt: skip
    assert chat.tools[0]["function"]["parameters"] == PARAMETERS
    assert chat.tools[1]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert (chat.tool_choice, chat.tool_name, chat.parallel_tool_calls) == ("auto", "", True)
    assert chat.separate_reasoning


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tool_choice": "none"}, ("none", "", True)),
        ({"tool_choice": "required"}, ("required", "", True)),
        ({"tool_choice": None, "parallel_tool_calls": False}, ("auto", "", False)),
        ({"tool_choice": {"type": "function", "function": {"name": "time.now-1"}}}, ("required", "time.now-1", False)),
    ],
)
async def test_the_choice_reaches_the_tokenizer(gw: Deployment, fields: dict[str, Any], expected: object) -> None:
    await gw.post(CHAT, {**HI, "tools": [WEATHER, TIME], **fields, "separate_reasoning": False, "jump_forward": False})
    chat = gw.tokenizer.requests[0].chat
    assert chat is not None
    assert (chat.tool_choice, chat.tool_name, chat.parallel_tool_calls) == expected
    assert not chat.separate_reasoning
    assert not chat.jump_forward


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [function(name="")]}, "tools[0].function.name"),
        ({"tools": [function(name="a b")]}, "tools[0].function.name"),
        ({"tools": [function(name='a"b')]}, "tools[0].function.name"),
        ({"tools": [function(name="é")]}, "tools[0].function.name"),
        ({"tools": [function(), function()]}, "tools[1].function.name"),
        ({"tools": [function(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [function(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [function(name=f"f{i}") for i in range(300)]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "some", "tools": [function()]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [function()]},
         "tool_choice.function.name"),
        ({"tool_choice": {"type": "function"}, "tools": [function()]}, "tool_choice.function"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)  # fmt: skip
async def test_wrong_tools_are_a_400_that_names_the_field(gw: Deployment, fields: dict[str, Any], param: str) -> None:
    status, body = await gw.post(CHAT, {**HI, **fields})
    assert (status, body["error"]["param"]) == (400, param)
    assert not gw.tokenizer.requests


async def test_an_answer_with_calls_and_reasoning_has_openai_s_shape(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(pieces=PIECES, finish=END)
    _, body = await gw.post(CHAT, {**HI, "tools": [WEATHER, TIME]})
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "So it is.",
        "refusal": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "time.now-1", "arguments": "{}"}},
        ],
    }


async def test_content_is_null_where_there_are_only_calls(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(pieces=PIECES[3:], finish=END)
    _, body = await gw.post(CHAT, {**HI, "tools": [WEATHER]})
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], len(message["tool_calls"])) == (None, None, 2)
    gw.tokenizer.script = lambda _: Script(pieces=[gain("", "Hm")])
    _, body = await gw.post(CHAT, HI)
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["tool_calls"]) == ("", "Hm", None)


async def test_a_stream_carries_calls_in_openai_s_deltas(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(pieces=PIECES, finish=END)
    events = await gw.events(CHAT, {**HI, "tools": [WEATHER, TIME], "stream": True, "logprobs": True})
    choices = [e["choices"][0] for e in events[:-1]]
    assert [c["delta"] for c in choices] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "So"},
        {"reasoning_content": " it is.", "content": "Let me"},
        {"content": " see."},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
                         "function": {"name": "get_weather", "arguments": '{"ci'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": "Paris"}'}},
                        {"index": 1, "id": "call_2", "type": "function",
                         "function": {"name": "time.now-1", "arguments": "{}"}}]},
        {},
    ]  # fmt: skip
    assert [c["finish_reason"] for c in choices] == [None] * 6 + ["tool_calls"]
    assert [len(c["logprobs"]["content"]) for c in choices[1:-1]] == [1] * 5
    events = await gw.events(CHAT, {**HI, "tools": [WEATHER, TIME], "stream": True})
    assert [e["choices"][0]["logprobs"] for e in events[:-1]] == [None] * 7


async def test_a_schema_refused_behind_the_gateway_is_named_by_its_tools(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(refuse=InvalidRequest("unknown keyword", param="tools"))
    status, body = await gw.post(CHAT, {**HI, "tools": [WEATHER], "regex": "a"})
    assert (status, body["error"]["param"]) == (400, "tools")

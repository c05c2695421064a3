"""Tools on the real stack and model: forced and free calls, streams of them, and a conversation that uses them."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.stack import Stack

MODEL = "SmolLM2-135M-Instruct"
ASK: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=12)
    unit: Literal["C", "F"]


class AddNumbers(BaseModel):
    """The sum of two numbers."""

    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


MODELS: dict[str, type[BaseModel]] = {"get_weather": GetWeather, "add_numbers": AddNumbers}
TOOLS = [openai.pydantic_function_tool(model, name=name) for name, model in MODELS.items()]
NAMED: Any = {"type": "function", "function": {"name": "add_numbers"}}


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, messages: list[Any] = ASK, **fields: Any) -> Any:
    fields = {"temperature": 0, "max_tokens": 100, "tools": TOOLS, "parallel_tool_calls": False, **fields}
    return client.chat.completions.parse(model=MODEL, messages=messages, **fields)


def calls(message: Any) -> list[tuple[str, str]]:
    """Name and arguments of each."""
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


@pytest.mark.parametrize("choice", ["required", NAMED, "auto", "none"], ids=str)
def test_calls_are_what_was_asked_for_and_a_stream_adds_up_to_the_same(client: openai.OpenAI, choice: Any) -> None:
    whole = ask(client, tool_choice=choice)
    message, finish = whole.choices[0].message, whole.choices[0].finish_reason
    if choice in ("required", NAMED):
        (call,) = message.tool_calls
        assert finish == "tool_calls"
        assert message.content is None
        assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])
        assert choice == "required" or call.function.name == "add_numbers"
    elif choice == "none":
        assert not message.tool_calls
        assert "Paris" in message.content
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, temperature=0, max_tokens=100, tools=TOOLS, parallel_tool_calls=False,
        tool_choice=choice, stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        streamed = stream.get_final_completion()
    again = streamed.choices[0].message
    assert streamed.choices[0].finish_reason == finish
    assert (again.content or None) == message.content
    assert calls(again) == calls(message)
    assert streamed.usage is not None
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens


def test_several_calls_in_a_row_fit_their_schemas(client: openai.OpenAI) -> None:
    out = client.chat.completions.create(
        model=MODEL, messages=ASK, temperature=1, seed=2, max_tokens=120, tools=TOOLS, tool_choice="required"
    ).choices[0]
    made: list[Any] = [*(out.message.tool_calls or [])]
    assert len({call.id for call in made}) == len(made) > 0
    for call in made if out.finish_reason == "tool_calls" else made[:-1]:
        MODELS[call.function.name].model_validate_json(call.function.arguments)


def test_auto_beside_a_grammar_gives_its_text_or_a_strict_call(client: openai.OpenAI, stack: Stack) -> None:
    either = {"regex": "Q[0-9]"}
    (token,) = stack.post("/tokenize", {"prompt": "Q", "add_special_tokens": False})[1]["tokens"]
    for bias, called in ((100, False), (-100, True)):
        choice = ask(client, extra_body=either, logit_bias={str(token): bias}).choices[0]
        if called:
            (call,) = choice.message.tool_calls
            assert choice.finish_reason == "tool_calls"
            assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])
        else:
            assert re.fullmatch("Q[0-9]", choice.message.content)
            assert choice.finish_reason == "stop"


def test_a_loop_with_two_tools_ends_in_words(client: openai.OpenAI) -> None:
    run: dict[str, Any] = {"get_weather": lambda a: {"degrees": 3, "unit": a.unit}, "add_numbers": lambda a: a.a + a.b}
    messages, cached = [*ASK], []
    for choice in ("required", NAMED, "none"):
        answer = ask(client, messages, tool_choice=choice)
        message = answer.choices[0].message
        messages.append(message)
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        for call in message.tool_calls or []:
            result = run[call.function.name](call.function.parsed_arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
    assert [m["role"] if isinstance(m, dict) else m.role for m in messages] == [
        "user", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert message.content
    assert cached[1] > 100  # the tools, which both turns show

"""Grammars on the real stack and model, with the official client: what is promised to the text holds."""

from __future__ import annotations

import enum
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.stack import Stack

MODEL = "SmolLM2-135M-Instruct"
HI: list[Any] = [{"role": "user", "content": "Plan a short trip to France as JSON."}]
COUNT = "one two three four five six seven eight nine ten"
DATE = r"The capital is (Paris|Rome), founded in [0-9]{3,4}\."


class Kind(enum.Enum):
    CITY = "city"
    RIVER = "river"


class Place(BaseModel):
    name: str = Field(max_length=12)
    kind: Kind
    size: Literal["small", "large"]


class Trip(BaseModel):
    title: str = Field(max_length=16)
    places: list[Place] = Field(min_length=1, max_length=2)
    rating: int | None = Field(ge=0, le=10)


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)


def chat(client: openai.OpenAI, messages: list[Any] = HI, *, max_tokens: int = 60, **fields: Any) -> Any:
    """A greedy answer unless `fields` say otherwise; fields that the client does not know go in `extra_body`."""
    fields = {"temperature": 0, **fields}
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=max_tokens, **fields)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "seed": 5}])
def test_parse_gives_an_instance_and_a_stream_the_same(client: openai.OpenAI, sampling: Any) -> None:
    whole = client.chat.completions.parse(model=MODEL, messages=HI, response_format=Trip, max_tokens=120, **sampling)
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "stop"
    assert isinstance(message.parsed, Trip)
    assert message.content == json.dumps(json.loads(message.content or ""), separators=(",", ":"), ensure_ascii=False)
    with client.chat.completions.stream(
        model=MODEL, messages=HI, response_format=Trip, max_tokens=120, stream_options={"include_usage": True},
        **sampling,
    ) as stream:  # fmt: skip
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(pieces) > 3
    assert "".join(pieces) == message.content
    assert final.choices[0].message.parsed == message.parsed
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens


SHAPES: dict[str, tuple[Any, str]] = {
    "regex": (r"[A-Z][a-z]{2,8}, [0-9]{2}", r"[A-Z][a-z]{2,8}, [0-9]{2}"),
    "choice": (["yes", "no", "per\"haps\" \n"], r"yes|no|per\"haps\" \n"),
    "ebnf": ('root ::= "(" (two | one) ")"\ntwo ::= one "," one\none ::= [a-c]{1,3}', r"\([a-c]{1,3}(,[a-c]{1,3})?\)"),
    "json_schema": ({"type": "integer", "minimum": 10, "maximum": 99}, r"[1-9][0-9]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_on_every_way_in(stack: Stack, kind: str) -> None:
    source, shape = SHAPES[kind]
    fields = {"max_tokens": 40, "temperature": 0.8, "seed": 3, kind: source}
    one = stack.post("/v1/chat/completions", {"messages": HI, **fields})[1]["choices"][0]
    two = stack.post("/v1/completions", {"prompt": "Name a day.", **fields})[1]["choices"][0]
    sampling = {"max_new_tokens": 40, "temperature": 0.8, "seed": 3, kind: source}
    three = stack.post("/generate", {"text": "Name a day.", "sampling_params": sampling})[1]
    assert [one["finish_reason"], two["finish_reason"], three["meta_info"]["finish_reason"]["type"]] == ["stop"] * 3
    for text in (one["message"]["content"], two["text"], three["text"]):
        assert re.fullmatch(shape, text), text
    assert two["text"] == three["text"]


def test_a_json_object_is_one_as_far_as_it_gets(client: openai.OpenAI) -> None:
    out = chat(client, response_format={"type": "json_object"}, max_tokens=80).choices[0]
    if out.finish_reason == "stop":
        assert isinstance(json.loads(out.message.content), dict)
    else:
        assert out.finish_reason == "length"
        assert out.message.content.startswith(("{}", '{"'))


def test_jumps_change_no_token_of_a_text_that_is_cut_one_way(stack: Stack) -> None:
    for grammar in ({"regex": DATE}, {"regex": COUNT}):
        outs = []
        for jump in (True, False):
            sampling = {"max_new_tokens": 40, "temperature": 0, "jump_forward": jump, **grammar}
            body = {"text": "France. ", "sampling_params": sampling, "return_logprob": True}
            status, out = stack.post("/generate", body)
            assert status == 200, out
            outs.append(out)
        assert outs[0]["text"] == outs[1]["text"]
        first, second = (out["meta_info"]["output_token_logprobs"] for out in outs)
        assert [entry[1] for entry in first] == [entry[1] for entry in second]
        assert [entry[0] for entry in first] == pytest.approx([entry[0] for entry in second], abs=2e-3)


def test_json_is_valid_with_jumps_and_without(client: openai.OpenAI) -> None:
    schema = Place.model_json_schema()
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema | {
        "additionalProperties": False}}}  # fmt: skip
    for jump in (True, False):
        out = chat(client, response_format=form, extra_body={"jump_forward": jump}).choices[0]
        assert out.finish_reason == "stop"
        Place.model_validate_json(out.message.content)


def test_every_token_counts_and_has_a_log_probability_forced_or_not(client: openai.OpenAI) -> None:
    out = chat(client, logprobs=True, top_logprobs=2, extra_body={"regex": DATE})
    entries = out.choices[0].logprobs.content
    assert len(entries) == out.usage.completion_tokens
    assert out.usage.total_tokens == out.usage.prompt_tokens + out.usage.completion_tokens
    assert "".join(e.token for e in entries[:-1]) == out.choices[0].message.content
    assert all(e.logprob < 0 and len(e.top_logprobs) == 2 for e in entries)
    assert any(e.logprob < e.top_logprobs[0].logprob - 1 for e in entries)  # what the model would not have chosen


def test_max_tokens_and_stop_strings_cut_a_forced_run(client: openai.OpenAI) -> None:
    cut = chat(client, max_tokens=4, extra_body={"regex": COUNT})
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one two three four", "length")
    assert cut.usage.completion_tokens == 4
    stopped = chat(client, stop=["five"], extra_body={"regex": COUNT})
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("one two three four ", "stop")
    assert stopped.usage.completion_tokens == 5
    whole = chat(client, extra_body={"regex": COUNT})
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (COUNT, "stop")


def test_two_choices_with_a_seed_differ_and_come_again(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        shape = {"regex": r"[a-z]{3,12} and [a-z]{3,12}"}
        out = chat(client, temperature=1, seed=3, n=2, extra_body=shape)
        return [c.message.content for c in sorted(out.choices, key=lambda c: c.index)]

    first = ask()
    assert all(re.fullmatch(r"[a-z]{3,12} and [a-z]{3,12}", text) for text in first)
    assert first[0] != first[1]
    assert ask() == first


def test_the_second_turn_finds_the_forced_text_of_the_first_in_the_cache(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": "Count, as far as you can, in English words."}]
    text = " then ".join([COUNT] * 3)
    first = chat(client, turns, extra_body={"regex": text})
    assert first.usage.completion_tokens > 32
    turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "And on?"}]
    second = chat(client, turns, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens + 16


def test_a_grammar_behind_many_others_changes_nothing_for_them(stack: Stack) -> None:
    good = {"messages": HI, "max_tokens": 24, "temperature": 0, "regex": DATE}
    plain = {"messages": HI, "max_tokens": 24, "temperature": 0}
    hostile = [
        r"(.{0,100}){0,100}", r"((a*)*)*b", r"(a{1000}){1000}", r".*a.{20}", r"((x+x+)+y){1,200}",
        r"(\w{1,50}\s){1,50}", r"([a-z]{0,200}[0-9]){0,200}", "(" * 3000 + "a" + ")" * 3000,
    ]  # fmt: skip
    bad = [{"messages": HI, "max_tokens": 24, "temperature": 0, "regex": pattern} for pattern in hostile]
    path = "/v1/chat/completions"
    want = [stack.post(path, body)[1]["choices"] for body in (good, plain)]
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(stack.post, path, body) for body in [*bad, good, plain]]
        got = [answer.result() for answer in answers]
    assert [answer["choices"] for _, answer in got[-2:]] == want
    for status, answer in got[:-2]:
        assert status in (200, 400), answer
    assert 400 in [status for status, _ in got]


NOTED = {"type": "object", "properties": {"a": {"type": "array", "items": {"minimun": 1}}}}
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"regex": "a(b"}, "regex", "character 2"),
    ({"regex": "a\x00b"}, "regex", "NUL"),
    ({"regex": "a(?=b)"}, "regex", "look-"),
    ({"regex": r"(a)\1"}, "regex", "back"),
    ({"regex": ""}, "regex", "empty"),
    ({"ebnf": "root ::= nope"}, "ebnf", "line 1"),
    ({"ebnf": 'root ::= "a"\nb ::= ['}, "ebnf", "line 2"),
    ({"ebnf": 'root ::= "\x00"'}, "ebnf", "NUL"),
    ({"choice": []}, "choice", "0 entries"),
    ({"choice": ["a", ""]}, "choice[1]", "empty"),
    ({"json_schema": NOTED}, "json_schema", "/properties/a/items/minimun"),
    ({"json_schema": '{"type": '}, "json_schema", "JSON"),
    ({"json_schema": {"const": "a\x00"}}, "json_schema", "/const"),
    ({"json_schema": {"enum": []}}, "json_schema", "/enum"),
    ({"json_schema": {"minimum": 3, "maximum": 2, "type": "integer"}}, "json_schema", ""),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": NOTED}}},
     "response_format.json_schema.schema", "/properties/a/items/minimun"),
    ({"regex": "a", "choice": ["a"]}, "choice", "give one"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": NOTED}}], "tool_choice": "required"},
     "tools", "minimun"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "where"), BAD, ids=range(len(BAD)))
def test_a_grammar_that_cannot_be_is_refused_with_its_place(
    stack: Stack, fields: dict[str, Any], param: str, where: str
) -> None:
    status, answer = stack.post("/v1/chat/completions", {"messages": HI, "max_tokens": 4, **fields})
    assert status == 400, answer
    assert answer["error"]["param"] == param, answer
    assert where in answer["error"]["message"], answer


@pytest.mark.parametrize("field", [b'"regex": "\\ud800"', b'"choice": ["a", "\\udfff"]', b'"ebnf": "root ::= \\ud9ff"'])
def test_half_a_character_is_refused(stack: Stack, field: bytes) -> None:
    status, answer = stack.post("/v1/completions", b'{"prompt": "a", "max_tokens": 4, ' + field + b"}")
    assert status == 400, answer
    assert len(answer["error"]["message"]) > 10

"""Parsing of JSON values into dataclasses: what is accepted, and what an error says."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import schema
from shared.errors import InvalidRequest
from tests.unit.shared.message_strategies import JSON


@dataclass(frozen=True)
class Part:
    """One part of a message.

    Not shown in the schema.
    """

    kind: Literal["text", "image"]
    text: str = ""


@dataclass(frozen=True)
class Message:
    role: str
    content: str | list[Part]


@dataclass(frozen=True)
class Body:
    messages: list[Message] = field(metadata={"help": "the conversation"})
    n: int = 1
    heat: float = 1.0
    stream: bool = False
    stop: str | list[str] | None = None
    bias: dict[str, float] = field(default_factory=dict)
    extra: Any = None
    ids: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [], **fields}


def fault(value: object, cls: type = Body, extra: Literal["forbid", "ignore"] = "forbid") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        schema.parse(cls, value, extra=extra)
    return caught.value


def test_a_complete_body_is_parsed() -> None:
    value = body(messages=[{"role": "user", "content": [{"kind": "text", "text": "Hi"}]}], n=2, stop=["a"], extra=[1])
    parsed = schema.parse(Body, value)
    assert parsed.messages[0].content == [Part("text", "Hi")]
    assert (parsed.n, parsed.stop, parsed.extra, parsed.ids) == (2, ["a"], [1], None)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], None),
        (None, None),
        ("text", None),
        ({}, "messages"),
        (body(messages={}), "messages"),
        (body(messages=[{"role": 1, "content": ""}]), "messages[0].role"),
        (body(messages=[{"role": "user", "content": ""}, {"role": "user"}]), "messages[1].content"),
        (body(messages=[{"role": "user", "content": [{"kind": "sound"}]}]), "messages[0].content[0].kind"),
        (body(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
        (body(messages=[{"role": "user", "content": "", "name": "x"}]), "messages[0].name"),
        (body(n="1"), "n"),
        (body(n=True), "n"),
        (body(n=1.5), "n"),
        (body(n=None), "n"),
        (body(n=10**5000), "n"),
        (body(n=2**64), "n"),
        (body(n=-(2**63) - 1), "n"),
        (body(n=float("nan")), "n"),
        (body(n=1e300), "n"),
        (body(heat="hot"), "heat"),
        (body(heat=True), "heat"),
        (body(heat=float("nan")), "heat"),
        (body(heat=float("inf")), "heat"),
        (body(heat=10**400), "heat"),
        (body(stream=1), "stream"),
        (body(stream="true"), "stream"),
        (body(stop=5), "stop"),
        (body(stop=["a", 5]), "stop[1]"),
        (body(bias={"5": "x"}), "bias.5"),
        (body(bias=[]), "bias"),
        (body(tempo=1), "tempo"),
    ],
)
def test_a_fault_names_the_first_value_that_does_not_fit(value: object, param: str | None) -> None:
    found = fault(value)
    assert found.param == param
    assert (param or "the body") in found.message


def test_a_fault_says_what_was_wanted_and_what_came() -> None:
    assert fault(body(n="one")).message == "n must be an integer, got 'one'"
    assert fault(body(stop=5)).message == "stop must be a string or an array of strings, got 5"
    part = {"role": "user", "content": [{"kind": "sound"}]}
    assert "'text', 'image'" in fault(body(messages=[part])).message


@pytest.mark.parametrize("length", [100, 10_000_000])
def test_a_fault_about_a_huge_value_stays_short(length: int) -> None:
    for value in (body(n="x" * length), body(stop=[[0] * length]), {**body(), "k" * length: 1},
                  body(bias={"k" * length: "x"}), "x" * length):  # fmt: skip
        found = fault(value)
        assert len(found.message) < 400
        assert len(found.param or "") < 200


def test_a_fault_about_a_deeply_nested_value_stays_short() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (body(n=deep), body(stop=deep), body(messages=deep), deep):
        assert len(fault(value).message) < 200
    while isinstance(deep, list):  # freeing it level by level is a recursion of the interpreter
        deep = deep[0]


@pytest.mark.parametrize(("given_", "wanted"), [(3.0, 3), (-(2**63), -(2**63)), (2**64 - 1, 2**64 - 1), (0, 0)])
def test_whole_numbers_of_64_bits_are_integers(given_: float, wanted: int) -> None:
    parsed = schema.parse(Body, body(n=given_)).n
    assert parsed == wanted
    assert type(parsed) is int


def test_an_integer_is_a_number() -> None:
    parsed = schema.parse(Body, body(heat=2, bias={"7": -1}))
    assert (parsed.heat, parsed.bias) == (2.0, {"7": -1.0})
    assert type(parsed.heat) is float


def test_unknown_fields_are_refused_or_ignored_at_every_level() -> None:
    value = body(messages=[{"role": "user", "content": [{"kind": "text", "color": "red"}], "name": "x"}], tempo=1)
    assert "check its spelling" in fault(value).message
    parsed = schema.parse(Body, value, extra="ignore")
    assert parsed.messages[0].content == [Part("text")]


def test_a_true_integer_is_not_a_literal_one() -> None:
    @dataclass(frozen=True)
    class Choice:
        level: Literal[1, 2]

    assert schema.parse(Choice, {"level": 1}).level == 1
    for value in (True, 1.0, "1", None, [1]):
        with pytest.raises(InvalidRequest):
            schema.parse(Choice, {"level": value})


def test_a_dataclass_may_contain_itself() -> None:
    value = {"value": 1, "children": [{"value": 2}, {"value": 3, "children": [{"value": "x"}]}]}
    assert fault(value, Tree).param == "children[1].children[0].value"
    value["children"] = [{"value": 2}]
    assert schema.parse(Tree, value) == Tree(1, [Tree(2)])
    assert schema.to_json(Tree(1, [Tree(2)])) == {"value": 1, "children": [{"value": 2, "children": []}]}


def test_json_leaves_out_plain_defaults_and_arrays() -> None:
    assert schema.to_json(Body(messages=[], n=3, ids=np.zeros(2, np.int32))) == {"messages": [], "n": 3, "bias": {}}


@given(JSON)
def test_any_json_value_parses_or_is_an_invalid_request(value: Any) -> None:
    for cls in (Body, Tree, Part):
        for candidate in (value, {"messages": value}, {"value": 0, "children": value}, {"kind": "text", "text": value}):
            with contextlib.suppress(InvalidRequest):
                assert dataclasses.is_dataclass(schema.parse(cls, candidate))


def test_the_json_schema_says_what_the_parser_accepts() -> None:
    defs: dict[str, Any] = {}
    assert schema.json_schema(Body, defs) == {"$ref": "#/components/schemas/Body"}
    assert set(defs) == {"Body", "Message", "Part"}
    assert defs["Body"]["required"] == ["messages"]
    assert defs["Body"]["properties"]["messages"]["description"] == "the conversation"
    assert "ids" not in defs["Body"]["properties"]
    assert defs["Part"]["description"] == "One part of a message."
    assert defs["Part"]["properties"]["kind"] == {"enum": ["text", "image"]}


@pytest.mark.parametrize(
    "value",
    [body(), body(n=2), body(stop="x"), body(stop=None), body(n="2"), body(stop=[1]), body(bias={"1": 0.5}), {}],
)
def test_parser_and_json_schema_agree(value: dict[str, Any]) -> None:
    defs: dict[str, Any] = {}
    document = {**schema.json_schema(Body, defs), "components": {"schemas": defs}}
    try:
        schema.parse(Body, value)
        accepted = True
    except InvalidRequest:
        accepted = False
    assert jsonschema.Draft202012Validator(document).is_valid(value) == accepted


def test_the_json_schema_of_a_recursive_class_refers_to_itself() -> None:
    defs: dict[str, Any] = {}
    schema.json_schema(Tree, defs)
    assert defs["Tree"]["properties"]["children"]["items"] == {"$ref": "#/components/schemas/Tree"}


def test_a_type_without_a_json_form_is_our_own_mistake() -> None:
    @dataclass(frozen=True)
    class Bad:
        when: set[int]

    with pytest.raises(TypeError, match="set"):
        schema.json_schema(Bad, {})
    with pytest.raises(TypeError, match="set"):
        schema.parse(Bad, {"when": [1]})


def test_array_types_are_recognized() -> None:
    assert schema.is_array_type(npt.NDArray[np.float32])
    assert schema.is_array_type(npt.NDArray[np.float32] | None)
    assert not schema.is_array_type(list[int])


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_token_ids_pass_unchanged(ids: list[int]) -> None:
    @dataclass(frozen=True)
    class Prompt:
        ids: list[int]

    assert schema.parse(Prompt, {"ids": ids}).ids == ids

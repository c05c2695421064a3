"""Structural tags: free text, triggers, tags and the special tokens that they may name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.scheduler.grammar.state import Grammar
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec
from tests.unit.scheduler.grammar.tiny import STOPS, build, byte_ids, follow, mask_of, matches, walk

ARGUMENTS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": ARGUMENTS}
TOOL = 3
"""Id of <|tool|>."""


def tag(begin: str, content: dict[str, Any], end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def of_format(form: Any, max_whitespace: int = 0) -> Grammar:
    return build(GrammarSpec("structural_tag", json.dumps({"type": "structural_tag", "format": form}), max_whitespace))


def const(text: str) -> dict[str, Any]:
    return {"type": "const_string", "value": text}


TWO = [tag("<f=one>", SCHEMA, "</f>"), tag("<f=two>", {"type": "regex", "pattern": "a+"}, "</f>")]
TRIGGERED = {"type": "triggered_tags", "triggers": ["<f="], "tags": TWO}
CASES: list[tuple[Any, list[str], list[str]]] = [
    (const("a/b"), ["a/b"], ["a", "a/bc"]),
    (SCHEMA, ['{"a":1}'], ['{"a": 1}', "{}"]),
    ({**SCHEMA, "max_whitespace_cnt": 1}, ['{"a":1}', '{"a": 1}'], ['{"a":  1}']),
    ({"type": "regex", "pattern": "^[a/]+$"}, ["a/a"], ["", "b"]),
    ({"type": "grammar", "grammar": 'root ::= "(" root ")" | "x"'}, ["((x))"], ["((x)"]),
    ({"type": "grammar", "grammar": 'root ::= "x" "y"?'}, ["x", "xy"], ["y"]),
    ({"type": "any_text"}, ["", "a\n<f="], []),
    ({"type": "any_text", "max_chars": 3}, ["", "日本語"], ["abcd"]),
    ({"type": "any_text", "excludes": ["no"]}, ["n o"], ["a no b"]),
    ({"type": "sequence", "elements": [{"type": "regex", "pattern": "a+"}, const("ab")]}, ["aab", "aaab"],
     ["ab", "aa"]),
    ({"type": "or", "elements": [const("x"), SCHEMA]}, ["x", '{"a":2}'], ["", 'x{"a":2}']),
    ({"type": "optional", "content": const("x")}, ["", "x"], ["xx"]),
    ({"type": "plus", "content": SCHEMA}, ['{"a":1}', '{"a":1}{"a":2}'], [""]),
    ({"type": "star", "content": const("ab")}, ["", "abab"], ["aba"]),
    ({"type": "repeat", "min": 2, "max": 3, "content": const("x")}, ["xx", "xxx"], ["x", "xxxx"]),
    ({"type": "repeat", "min": 1, "max": -1, "content": SCHEMA}, ['{"a":1}' * 4], [""]),
    (tag("<t>", {"type": "any_text"}, "</t>"), ["<t></t>", "<t>a</b></t>"], ["<t>a", "<t>a</t>b</t>"]),
    (tag("<t>", {"type": "any_text"}, ["</t>", "</u>"]), ["<t>a</t>", "<t>a</u>"], ["<t>a</u></t>"]),
    (TRIGGERED, ["", "text <f", 'hi <f=one>{"a":1}</f> and <f=two>aa</f>!'],
     ["<f=", "<f=one>x", "<f=three>", 'a <f=one>{"a":1}', "<f=two>b</f>"]),
    ({**TRIGGERED, "at_least_one": True}, ['<f=one>{"a":1}</f>', '<f=one>{"a":1}</f> x <f=two>a</f>'], ["", "x"]),
    ({**TRIGGERED, "stop_after_first": True}, ["x", 'x<f=one>{"a":1}</f>'], ['<f=one>{"a":1}</f>x']),
    ({**TRIGGERED, "stop_after_first": True, "at_least_one": True}, ["<f=two>a</f>"], ["", "x", "x<f=two>a</f>"]),
    ({**TRIGGERED, "excludes": ["bad"]}, ["good"], ["bad", "bad<f=two>a</f>", "<f=two>a</f>bad"]),
    ({"type": "triggered_tags", "triggers": ["aa"], "tags": [tag("aab", const("x"), "")]}, ["a", "aabx", "caabx", "ab"],
     ["aa", "aaab", "aaabx"]),
    ({"type": "tags_with_separator", "tags": TWO, "separator": ","}, ["", '<f=one>{"a":1}</f>,<f=two>a</f>'],
     ["x", '<f=one>{"a":1}</f>,', '<f=one>{"a":1}</f><f=two>a</f>']),
    ({"type": "tags_with_separator", "tags": TWO, "separator": ",", "at_least_one": True, "stop_after_first": True},
     ["<f=two>a</f>"], ["", "<f=two>a</f>,<f=two>a</f>"]),
    ({"type": "sequence", "elements": [tag("<think>", {"type": "any_text"}, "</think>"), const("\n"), SCHEMA]},
     ['<think>so {"a":2}</think>\n{"a":1}'], ['{"a":1}', '<think>\n{"a":1}']),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: json.dumps(case[0])[:60])
def test_a_format_matches_what_it_should(case: tuple[Any, list[str], list[str]]) -> None:
    form, valid, invalid = case
    grammar = of_format(form)
    assert [text for text in valid if not matches(grammar, text)] == []
    assert [text for text in invalid if matches(grammar, text)] == []


def test_walks_through_triggered_tags_end_as_they_should() -> None:
    grammar = of_format({**TRIGGERED, "at_least_one": True})
    for seed in range(10):
        assert matches(grammar, walk(grammar, seed, most_tokens=20, way_out='}</f>1"a:'))


def test_the_older_form_is_understood() -> None:
    old = {"triggers": ["<f="], "structures": [{"begin": "<f=one>", "schema": ARGUMENTS, "end": "</f>"}]}
    grammar = build(GrammarSpec("structural_tag", json.dumps({"type": "structural_tag", **old})))
    assert matches(grammar, 'x <f=one>{"a":1}</f> y')
    assert not matches(grammar, "x <f=one>{}</f>")


@pytest.mark.parametrize(
    "begin", ["<|tool|>x", {"type": "token", "token": "<|tool|>"}, {"type": "token", "token": TOOL}]
)
def test_a_special_token_that_a_tag_names_is_a_token(begin: Any) -> None:
    state = of_format({"type": "tag", "begin": begin, "content": SCHEMA, "end": ""}).start(STOPS)
    assert mask_of(state).tolist() == [TOOL]
    assert not state.accept(byte_ids()[ord("<")])
    assert state.accept(TOOL)
    assert follow(state, ('x{"a":1}' if isinstance(begin, str) else '{"a":1}'))
    assert state.complete
    state.rollback(1)
    assert not state.complete


def test_a_special_token_triggers_and_ends_a_tag() -> None:
    form = {"type": "triggered_tags", "triggers": ["<|tool|>"], "tags": [tag("<|tool|>", SCHEMA, "<|endoftext|>")]}
    state = of_format(form).start(STOPS)
    assert follow(state, "some text")
    assert state.complete
    assert TOOL in mask_of(state)
    assert state.accept(TOOL)
    assert not state.complete
    assert follow(state, '{"a":1}')
    assert mask_of(state).tolist() == [0]
    assert state.accept(0)
    assert state.complete


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (None, "at /format: must be a format"),
        ({"type": "nonsense"}, "at /format: format type 'nonsense' is not supported"),
        ({"type": "sequence", "elements": []}, "at /format/elements: "),
        ({"type": "sequence", "elements": [const("a"), {"type": "or"}]}, "at /format/elements/1/elements"),
        ({"type": "json_schema", "json_schema": {"properties": {"x": {"not": {}}}}},
         "at /format/json_schema: json_schema at /properties/x/not"),
        ({"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}, "at /format/style"),
        ({"type": "json_schema", "json_schema": {}, "max_whitespace_cnt": 99}, "at /format/max_whitespace_cnt"),
        ({**TRIGGERED, "triggers": []}, "at /format/triggers"),
        ({**TRIGGERED, "triggers": ["<g"]}, "at /format/tags/0/begin: .* none of the triggers"),
        ({"type": "any_text", "max_tokens": 5}, "at /format/max_tokens"),
        ({"type": "repeat", "min": 3, "max": 2, "content": const("x")}, "at /format: min 3"),
        ({"type": "token", "token": 77}, "at /format/token"),
        ({"type": "regex", "pattern": "("}, "unclosed group"),
        ({"type": "grammar", "grammar": "root ::= x"}, "line 1: rule x is not defined"),
        (const(""), "at /format/value"),
    ],
)  # fmt: skip
def test_a_document_that_is_wrong_is_refused_with_its_place(form: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        of_format(form)
    assert caught.value.param in ("structural_tag", "ebnf")


def test_formats_nested_without_end_are_refused() -> None:
    form: Any = const("x")
    for _ in range(60):
        form = {"type": "optional", "content": form}
    with pytest.raises(InvalidRequest, match="nested deeper"):
        of_format(form)

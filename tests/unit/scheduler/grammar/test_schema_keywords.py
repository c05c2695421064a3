"""Each keyword: instances that must be generable, instances that must not, and the places where it is refused.

jsonschema is the judge of both lists, so that a wrong expectation fails too.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from services.scheduler.grammar.schema_keywords import ANNOTATIONS, ENFORCED, REFUSED, STRING_FORMATS, fate
from shared.errors import InvalidRequest
from tests.unit.scheduler.grammar.tiny import matches, of_schema

INT, STR = {"type": "integer"}, {"type": "string"}
Row = tuple[str, Any, list[Any], list[Any]]
ROWS: list[Row] = [
    ("type", {"type": "integer"}, [0, -5, 123], ["a", 1.5, None, [], {}, True]),
    ("type", {"type": "number"}, [0, -1.5, 1e30], ["a", None]),
    ("type", {"type": "boolean"}, [True, False], ["true", 0, None]),
    ("type", {"type": "null"}, [None], [0, "null"]),
    ("type", {"type": "string"}, ["", "a\"b\\c\n", "é日😀"], [1, None]),
    ("type", {"type": "array"}, [[], [1, "a", [None]]], [{}, 1]),
    ("type", {"type": "object"}, [{}, {"a": {"b": [1]}}], [[], 1]),
    ("type", {"type": ["string", "null"]}, ["a", None], [1, True]),
    ("enum", {"enum": [1, "a", None, {"x": [1, "y"]}]}, [1, "a", None, {"x": [1, "y"]}], [2, "b", {"x": [1]}]),
    ("enum", {"type": "string", "enum": ["a", 1]}, ["a"], [1, "b"]),
    ("const", {"const": "a\"é\n"}, ["a\"é\n"], ["a", 1]),
    ("const", {"const": {"b": 1, "a": [True]}}, [{"b": 1, "a": [True]}], [{"b": 2, "a": [True]}, {}]),
    ("properties", {"type": "object", "properties": {"a": INT, "b": STR}}, [{}, {"a": 1}, {"a": 1, "b": "x"}],
     [{"a": "x"}, {"b": 1}]),
    ("properties", {"type": "object", "properties": {"a/b": INT, "c\"d": STR, "é": {}}},
     [{"a/b": 1, "c\"d": "x", "é": None}], [{"a/b": "x"}, {"c\"d": 1}]),
    ("required", {"type": "object", "properties": {"a": INT, "b": INT}, "required": ["b"]},
     [{"b": 1}, {"a": 1, "b": 2}], [{}, {"a": 1}]),
    ("required", {"type": "object", "required": ["z"]}, [{"z": 1}], [{}, {"a": 1}]),
    ("additionalProperties", {"type": "object", "properties": {"a": INT}, "additionalProperties": False},
     [{}, {"a": 1}], [{"b": 1}, {"a": 1, "b": 1}]),
    ("additionalProperties", {"type": "object", "additionalProperties": INT}, [{}, {"x": 1, "y": 2}], [{"x": "a"}]),
    ("patternProperties", {"type": "object", "patternProperties": {"^x": INT}, "additionalProperties": False},
     [{}, {"xa": 1}], [{"xa": "s"}, {"y": 1}]),
    ("minProperties", {"type": "object", "minProperties": 2}, [{"a": 1, "b": 2}], [{}, {"a": 1}]),
    ("minProperties", {"type": "object", "properties": {"a": INT, "b": INT}, "required": ["a"], "minProperties": 1},
     [{"a": 1}], [{}]),
    ("maxProperties", {"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    ("items", {"type": "array", "items": INT}, [[], [1, 2]], [["a"], [1, "a"]]),
    ("items", {"type": "array", "items": False}, [[]], [[1]]),
    ("prefixItems", {"type": "array", "prefixItems": [INT, STR], "items": False}, [[], [1], [1, "a"]],
     [["a"], [1, 2], [1, "a", 3]]),
    ("prefixItems", {"type": "array", "prefixItems": [INT], "items": STR, "minItems": 2}, [[1, "a"], [1, "a", "b"]],
     [[1], [1, 2]]),
    ("minItems", {"type": "array", "items": INT, "minItems": 2}, [[1, 2], [1, 2, 3]], [[], [1]]),
    ("maxItems", {"type": "array", "items": INT, "maxItems": 2}, [[], [1, 2]], [[1, 2, 3]]),
    ("uniqueItems", {"type": "array", "items": INT, "uniqueItems": False}, [[1, 1]], [["a"]]),
    ("uniqueItems", {"type": "array", "items": INT, "uniqueItems": True, "maxItems": 1}, [[], [1]],
     [[1, 1], [1, 2, 3]]),
    ("minLength", {"type": "string", "minLength": 2}, ["ab", "é日", "\"\\", "abc"], ["", "a", "é"]),
    ("minLength", {"minLength": 2}, ["ab", 1, None, []], ["a"]),
    ("maxLength", {"type": "string", "maxLength": 2}, ["", "ab", "\n\"", "日😀"], ["abc", "日本語"]),
    ("pattern", {"type": "string", "pattern": "^[a-c]+$"}, ["a", "abc"], ["", "d", "ad"]),
    ("pattern", {"type": "string", "pattern": "b+"}, ["b", "xbby"], ["", "xy"]),
    ("pattern", {"type": "string", "pattern": "^a+$", "maxLength": 2}, ["a", "aa"], ["aaa", "b"]),
    ("format", {"type": "string", "format": "date"}, ["2024-02-29"], ["2024-13-01", "24-1-1", ""]),
    ("format", {"type": "string", "format": "date-time"}, ["2024-02-29T10:00:00Z"], ["2024-02-29", "10:00"]),
    ("format", {"type": "string", "format": "email"}, ["a@b.co"], ["a", "@"]),
    ("format", {"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["1.2.3", "300.1.1.1"]),
    ("format", {"type": "string", "format": "ipv6"}, ["::1", "2001:db8::1"], ["1.2.3.4", "::g"]),
    ("format", {"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123"]),
    ("minimum", {"type": "integer", "minimum": 5}, [5, 12], [4, -7]),
    ("minimum", {"type": "number", "minimum": -1.5}, [-1.5, 0, 2.25], [-1.6, -2]),
    ("maximum", {"type": "integer", "minimum": -3, "maximum": 30}, [-3, 0, 30], [31, -4, 100]),
    ("exclusiveMinimum", {"type": "number", "exclusiveMinimum": 1.5}, [1.51, 2], [1.5, 1]),
    ("exclusiveMaximum", {"type": "integer", "exclusiveMaximum": 10}, [9, -1], [10, 11]),
    ("multipleOf", {"type": "integer", "multipleOf": 3}, [0, 3, 33, -6], [1, 4, 100]),
    ("anyOf", {"anyOf": [INT, {"type": "string", "maxLength": 1}]}, [1, "a"], ["ab", None]),
    ("anyOf", {"type": ["integer", "string"], "anyOf": [{"minimum": 3}, {"type": "string"}]}, [3, "a"], [2, None]),
    ("oneOf", {"oneOf": [INT, STR]}, [1, "a"], [None, 1.5]),
    ("oneOf", {"oneOf": [
        {"type": "object", "properties": {"k": {"const": "a"}, "x": INT}, "required": ["k"]},
        {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"]}]},
     [{"k": "a", "x": 1}, {"k": "b"}], [{"k": "c"}, {}, {"k": "a", "x": "y"}]),
    ("allOf", {"allOf": [INT, {"minimum": 3}, {"maximum": 5}]}, [3, 5], [2, 6, "a"]),
    ("allOf", {"allOf": [
        {"type": "object", "properties": {"a": INT}, "required": ["a"]},
        {"type": "object", "properties": {"b": STR}, "required": ["b"]}]},
     [{"a": 1, "b": "x"}], [{"a": 1}, {"b": "x"}]),
    ("$ref", {"$ref": "#/$defs/a%20b~1c", "$defs": {"a b/c": INT}}, [1], ["a"]),
    ("$ref", {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
              "required": ["next"], "additionalProperties": False}, [{"next": None}, {"next": {"next": None}}],
     [{}, {"next": 1}, {"next": {"next": {}}}]),
    ("$ref", {"$ref": "#/properties/a", "properties": {"a": {"type": "integer", "minimum": 4}}}, [4], [3, "a"]),
    ("definitions", {"$ref": "#/definitions/x", "minimum": 5, "definitions": {"x": INT}}, [5], [4, "a"]),
]  # fmt: skip
OLDER: list[Row] = [
    ("items", {"type": "array", "items": [INT, STR], "additionalItems": False}, [[1, "a"], [1]], [["a"], [1, "a", 2]]),
    ("additionalItems", {"type": "array", "items": [INT], "additionalItems": STR}, [[1, "a"]], [[1, 2]]),
    ("exclusiveMinimum", {"type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    ("nullable", {"type": "string", "nullable": True}, ["a", None], [1]),
    ("nullable", {"type": "string", "nullable": False}, ["a"], [None]),
    ("format", {"type": "integer", "format": "int32"}, [2**31 - 1, -(2**31)], [2**31, -(2**31) - 1]),
]
"""Spellings that today's jsonschema does not know."""


def dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize("row", ROWS + OLDER, ids=lambda row: f"{row[0]}-{dumps(row[1])[:50]}")
def test_valid_instances_can_be_generated_and_invalid_ones_cannot(row: Row) -> None:
    _, schema, valid, invalid = row
    grammar = of_schema(schema)
    assert [v for v in valid if not matches(grammar, dumps(v))] == []
    assert [v for v in invalid if matches(grammar, dumps(v))] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{dumps(row[1])[:50]}")
def test_the_expectations_are_those_of_json_schema(row: Row) -> None:
    _, schema, valid, invalid = row
    judge = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    assert all(judge.is_valid(v) for v in valid)
    if row[0] != "format":  # jsonschema judges formats only where further packages are installed
        assert not any(judge.is_valid(v) for v in invalid)


def test_every_enforced_keyword_has_a_row() -> None:
    seen = {key for row in ROWS + OLDER for key in (row[0], *row[1])}
    assert {*ENFORCED} <= seen


@pytest.mark.parametrize("keyword", [*REFUSED, "minimun"])
def test_a_keyword_that_cannot_be_enforced_is_refused_with_its_place(keyword: str) -> None:
    assert fate(keyword) == "refused"
    with pytest.raises(InvalidRequest, match=r"at /properties/a~1b/items/") as caught:
        of_schema({"properties": {"a/b": {"items": {keyword: {}}}}})
    assert f"/properties/a~1b/items/{keyword}:" in caught.value.message
    assert caught.value.param == "json_schema"


def test_annotations_change_nothing() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    noted = {**plain, **dict.fromkeys(ANNOTATIONS, "x"), "x-note": {"whitespace_flexible": True}, "x-guidance": {}}
    grammar = of_schema(noted)
    assert matches(grammar, '{"a":1}')
    assert not matches(grammar, '{"a": 1}')
    assert not matches(grammar, '{"b":1}')


@pytest.mark.parametrize("name", ["idn-email", "iri", "regex", "binary", "unknown", "int32", "date_time"])
def test_a_format_that_is_not_enforced_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="/format"):
        of_schema({"type": "string", "format": name})


def test_every_listed_format_compiles() -> None:
    for name in STRING_FORMATS:
        assert not matches(of_schema({"type": "string", "format": name}), '"?"')


def test_a_property_cannot_be_spelled_past_its_schema() -> None:
    grammar = of_schema({"type": "object", "properties": {"a/b": INT}})
    assert not matches(grammar, '{"a/b":"x"}')
    assert not matches(grammar, '{"\\u0061/b":"x"}')
    assert not matches(grammar, '{"a\\/b":"x"}')
    assert not matches(grammar, '{"a/b":1,"a/b":"x"}')


def test_whitespace_is_none_or_bounded() -> None:
    schema = {"type": "object", "properties": {"a": INT, "b": {"type": "array", "items": INT}}, "required": ["a", "b"]}
    compact, spaced = of_schema(schema), of_schema(schema, max_whitespace=2)
    assert matches(compact, '{"a":1,"b":[1,2]}')
    assert not matches(compact, '{"a": 1,"b":[1,2]}')
    for text in ('{"a":1,"b":[1,2]}', '{ "a" : 1 , "b" : [ 1 ,\n 2 ] }'):
        assert matches(spaced, text)
    assert not matches(spaced, '{   "a":1,"b":[1,2]}')

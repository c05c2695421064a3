"""What is wrong with a grammar is said, with its place, and quickly."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from services.scheduler.grammar.regex_check import shortest_match
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec
from tests.unit.scheduler.grammar.tiny import build, matches, of_schema

DEEP: dict[str, Any] = {"type": "string"}
for _ in range(200):
    DEEP = {"type": "array", "items": DEEP}
SELF = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (False, "at /: false"),
        (None, "at /: a schema is an object or true or false, not null"),
        ([], "not a list"),
        ({"type": "foo"}, "at /type: must be one of"),
        ({"type": []}, "at /type"),
        ({"type": ["string", "string"]}, "at /type"),
        ({"enum": []}, "at /enum"),
        ({"enum": ["a\x07"]}, r"at /enum/0: .*U\+0007"),
        ({"const": {"k\x01": 1}}, r"at /const: .*U\+0001"),
        ({"properties": {"\x02": {}}}, r"at /properties/\x02: .*U\+0002"),
        ({"properties": []}, "at /properties: must be an object of schemas"),
        ({"properties": {"a": 1}}, "at /properties/a: a schema is an object"),
        ({"required": "a"}, "at /required"),
        ({"minLength": -1}, "at /minLength"),
        ({"minLength": 1.5}, "at /minLength"),
        ({"minLength": True}, "at /minLength"),
        ({"minLength": 3, "maxLength": 2}, "at /: minLength 3 is more than maxLength 2"),
        ({"minItems": 3, "maxItems": 2}, "at /: minItems"),
        ({"items": {"minimum": 3, "maximum": 2}}, "at /items: minimum 3"),
        ({"minimum": "3"}, "at /minimum"),
        ({"multipleOf": 0}, "at /multipleOf"),
        ({"pattern": 3}, "at /pattern"),
        ({"pattern": "x" * 5000}, "at /pattern"),
        ({"properties": {"a": {"pattern": "("}}}, "at /properties/a: unclosed group"),
        ({"properties": {"a": {"pattern": "(?=x)y"}}}, "at /properties/a: look-around"),
        ({"patternProperties": {"[": {}}}, "unclosed character class"),
        ({"anyOf": []}, "at /anyOf"),
        ({"anyOf": [{}, {"oneOf": 3}]}, "at /anyOf/1/oneOf"),
        ({"properties": {"a": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}}, "at /properties/a: a oneOf in"),
        ({"$ref": "http://example.com/x"}, r"at /\$ref: only pointers"),
        ({"$ref": "#name"}, r"at /\$ref: only pointers"),
        ({"$ref": "#/$defs/none"}, r"at /\$ref: \$ref to /\$defs/none, which is no schema"),
        ({"$ref": "#/enum/0", "enum": [{}]}, "which is no schema"),
        ({"properties": {"a": {"$id": "http://x/y"}}}, r"at /properties/a/\$id"),
        ({"nullable": True}, "at /nullable"),
        ({"type": "string", "format": "int32"}, "at /format"),
        ({"type": "object", "properties": {"a": {}}, "maxProperties": 1}, "at /maxProperties"),
        ({"type": "array", "uniqueItems": True}, "at /uniqueItems"),
        (SELF, "refers to itself without an end"),
        ({"$ref": "#"}, "refers to itself without an end"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "without an end"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "required property 'a'"),
        ({"type": "string", "enum": [1]}, "Unsatisfiable"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"type": "array", "items": False, "minItems": 1}, "(?i)unsatisfiable"),
        ({"type": "array", "items": {"const": "x" * 90}, "minItems": 1000}, "at /: its shortest text has 9"),
        ({"type": "string", "pattern": "^(a{1000}){1000}$"}, r"at /, at \{1000\}"),
        ({"enum": [str(i) for i in range(6000)]}, "more than 5,000 enum values"),
        ({"properties": {f"p{i}": {} for i in range(1500)}}, "1,500 optional properties"),
        ({"const": "x" * 5000}, "at /const: a string of 5,000"),
        (DEEP, "nested deeper than 64"),
    ],
)  # fmt: skip
def test_a_schema_that_is_wrong_is_refused_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        of_schema(schema)
    assert caught.value.param == "json_schema"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GrammarSpec("json_schema", "{"), "is not JSON"),
        (GrammarSpec("json_schema", "[" * 5000), "is not JSON: .*depth"),
        (GrammarSpec("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000), "is not JSON: .*depth"),
        (GrammarSpec("json_schema", ""), "missing"),
        (GrammarSpec("json_object", "{}"), "too much"),
        (GrammarSpec("regex", "a\x00"), "NUL"),
        (GrammarSpec("regex", "a\ud800"), "half a character"),
        (GrammarSpec("regex", "a" * 300_000), "limit is 262,144"),
        (GrammarSpec("regex", "a" * 70_000), "limit is 65,536"),
        (GrammarSpec("json_object", "", 65), "0 to 64"),
        (GrammarSpec("regex", "ab["), "unclosed character class, at character 3"),
        (GrammarSpec("regex", "a{3,2}"), "repetition"),
        (GrammarSpec("regex", "a\\bc"), "not supported"),
        (GrammarSpec("regex", "(a)\\1"), "backreferences"),
        (GrammarSpec("regex", "(?=a)b"), "look-around"),
        (GrammarSpec("regex", "a$b"), "not supported"),
        (GrammarSpec("regex", "(" * 3000 + "a" + ")" * 3000), "nest limit|too deep|nested"),
        (GrammarSpec("regex", "a{0}"), "only the empty text"),
        (GrammarSpec("regex", "[a&&b]"), "no text"),
        (GrammarSpec("regex", "(a{1000}){1000}"), r"at \{1000\} \(character 10\): .*1,000,000"),
        (GrammarSpec("regex", "x?(y(a{9}){1000})?"), "9,000 characters"),
        (GrammarSpec("choice", "[]"), "1 to 10,000"),
        (GrammarSpec("choice", '"a"'), "1 to 10,000"),
        (GrammarSpec("choice", "[1"), "not JSON"),
        (GrammarSpec("choice", '["a",1]'), r"choice\[1\] must be a string"),
        (GrammarSpec("choice", '["a",""]'), r"choice\[1\] must be a string that is not empty"),
        (GrammarSpec("choice", '["a","b","a"]'), r"choice\[2\] is the same as choice\[0\]"),
        (GrammarSpec("structural_tag", "[]"), "at /: must be an object"),
        (GrammarSpec("structural_tag", "nonsense"), "not JSON"),
    ],
)  # fmt: skip
def test_a_grammar_that_is_wrong_is_refused(spec: GrammarSpec, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        build(spec)


def test_a_choice_is_its_texts_and_nothing_else() -> None:
    texts = ["a.b", "a|b", "foo", "foobar", 'é\n"', "a/b", "#x y&z~-\\d"]
    grammar = build(GrammarSpec("choice", json.dumps(texts)))
    assert all(matches(grammar, text) for text in texts)
    assert not any(matches(grammar, text) for text in ("axb", "a", "foob", "", "é\n"))


def test_any_json_object_is_an_object() -> None:
    grammar = build(GrammarSpec("json_object"))
    assert matches(grammar, '{"a":[1,{"b":null}],"c":"x"}')
    assert not matches(grammar, "[1]")
    assert matches(build(GrammarSpec("json_schema", "true")), "[1]")


@pytest.mark.parametrize(
    ("pattern", "length"),
    [("abc", 3), ("a|bcd", 1), ("(ab|c)d", 2), ("a{3}b*", 3), ("(ab){2,}c+", 5),
     (r"\d\x41\x{1F600}\p{Lu}", 4), ("[a(b]{2}", 2), ("[]a]x", 2), (r"[\]]x", 2), ("(?:a(?:b|)){2}", 2),
     ("(?P<n>a)(?i:b)", 2), ("a{x}", 4), ("^a$", 1)],
)  # fmt: skip
def test_the_shortest_match_of_a_regex(pattern: str, length: int) -> None:
    assert shortest_match(pattern) == length


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"value {i}" for i in range(5000)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 100 + i} for i in range(200)}},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 10**6},
        {"allOf": [{"anyOf": [{"minimum": i}, {"maximum": -i}]} for i in range(1, 9)], "type": "integer"},
    ],
)  # fmt: skip
def test_large_grammars_are_decided_in_a_moment(schema: Any) -> None:
    began = time.process_time()
    assert not matches(of_schema(schema), "?")
    assert time.process_time() - began < 5.0

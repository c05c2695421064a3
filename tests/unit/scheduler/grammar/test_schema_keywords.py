"""Each keyword: instances that must be generable, instances that must not, and the places where it is refused.

jsonschema is the judge of both lists, so that a wrong expectation fails too.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from services.scheduler.grammar.schema_check import MAX_OPTIONAL
from services.scheduler.grammar.schema_keywords import ANNOTATIONS, ENFORCED, REFUSED, STRING_FORMATS, fate
from shared.errors import InvalidRequest
from tests.unit.scheduler.grammar.schema_rows import INT, OLDER, ROWS, STR, Row
from tests.unit.scheduler.grammar.tiny import STOPS, follow, mask_of, matches, of_schema


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


@pytest.mark.parametrize("more", [False, True, {"type": "integer"}])
def test_an_object_may_have_as_many_optional_properties_as_the_limit_says(more: Any) -> None:
    properties = {f"p{n}": STR for n in range(MAX_OPTIONAL)}
    schema = {"type": "object", "properties": properties, "additionalProperties": more}
    nested = of_schema({"type": "array", "items": {"type": "object", "properties": {"a": schema}}})
    state = nested.start(STOPS)
    for text in ('[{"a":{', '"p5":"x",', f'"p{MAX_OPTIONAL - 1}":"y"', "}}", "]"):
        assert mask_of(state).size
        assert follow(state, text)
    assert state.complete
    with pytest.raises(InvalidRequest, match="1,001 optional properties"):
        of_schema({**schema, "properties": {**properties, "one more": STR}})

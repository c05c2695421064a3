"""The second backend holds the same contract; what it would ignore it refuses. Needs the extra `xgrammar`."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from services.scheduler.grammar import xgrammar_backend
from services.scheduler.grammar.state import Grammar
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec
from tests.unit.scheduler.grammar.tiny import STOP, STOPS, follow, forced, mask_of, matches, vocabulary, walk

pytest.importorskip("xgrammar")


@functools.cache
def engine() -> xgrammar_backend.Engine:
    return xgrammar_backend.Engine(vocabulary())


def build(kind: Any, source: str) -> Grammar:
    """Compiled, serialized and read back, as between two processes."""
    return engine().load(engine().compile(GrammarSpec(kind, source)))


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "kind": {"enum": ["cat", "cow"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("kind", "source", "valid", "invalid"),
    [
        ("regex", "a+b?", ["a", "aab"], ["", "b"]),
        ("ebnf", 'root ::= "(" root ")" | "x"', ["((x))"], ["(x"]),
        ("choice", '["yes","no \\"q\\""]', ["yes", 'no "q"'], ["y"]),
        ("json_schema", json.dumps(PERSON), ['{"name":"A\\"l","kind":"cat"}'], ['{"name": "A"}', '{"name":"A"}']),
        ("json_object", "", ["{}", '{"a":1}'], ["[]"]),
        ("structural_tag", '{"type":"structural_tag","format":{"type":"const_string","value":"hi"}}', ["hi"], ["h"]),
    ],
)
def test_every_kind_compiles_and_is_followed(kind: Any, source: str, valid: list[str], invalid: list[str]) -> None:
    grammar = build(kind, source)
    assert grammar.backend == "xgrammar"
    assert all(matches(grammar, text) for text in valid)
    assert not any(matches(grammar, text) for text in invalid)


def test_stop_tokens_special_tokens_and_rollback() -> None:
    state = build("regex", "[^x]*|ab").start(STOPS)
    padding = {i for i, data in enumerate(vocabulary().token_bytes) if not data}
    assert {*mask_of(state).tolist()} & padding == STOPS
    assert not any(state.accept(i) for i in padding - STOPS)
    before = mask_of(state).tolist()
    assert follow(state, "ab")
    assert state.accept(STOP)
    assert state.ended
    assert not state.accept(STOP)
    state.rollback(3)
    assert mask_of(state).tolist() == before


def test_forced_runs() -> None:
    state = build("json_schema", json.dumps(PERSON)).start(STOPS)
    run = forced(state, [], 50)
    assert b'{"name":"'.startswith(vocabulary().text_of(run))
    assert run
    assert follow(state, '{"name":"A","kind":"co')
    assert vocabulary().text_of(forced(state, [], 50)) == b'w"}'
    assert forced(state, [], 50)[-1] == STOP
    assert follow(state, 'w"}')
    assert state.exhausted


def test_walks_satisfy_the_schema() -> None:
    grammar = build("json_schema", json.dumps(PERSON))
    for seed in range(5):
        assert json.loads(walk(grammar, seed))["kind"] in ("cat", "cow")


@pytest.mark.parametrize("keyword", xgrammar_backend.NOT_ENFORCED)
def test_a_keyword_that_it_would_ignore_is_refused(keyword: str) -> None:
    values: dict[str, Any] = {
        "multipleOf": 3, "oneOf": [{"type": "null"}], "allOf": [{}], "patternProperties": {"a": {}},
        "minProperties": 1, "maxProperties": 1, "format": "email",
    }  # fmt: skip
    with pytest.raises(InvalidRequest, match=f"/properties/p/{keyword}: cannot be enforced"):
        build("json_schema", json.dumps({"properties": {"p": {keyword: values[keyword]}}}))


@pytest.mark.parametrize(
    ("kind", "source"), [("regex", "(a"), ("ebnf", "root ::= x"), ("structural_tag", "{}"), ("regex", "a{0}")]
)
def test_what_is_wrong_is_refused(kind: Any, source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build(kind, source)
    assert caught.value.param == kind
    assert ".cc:" not in caught.value.message

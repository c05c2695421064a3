"""What bodies say about the form of the text becomes one grammar, or a 400 that names the field."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec
from tests.unit.gateway.deployment import Deployment, Script

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
TEXT = orjson.dumps(SCHEMA).decode()
TAG = {"type": "structural_tag", "format": {"type": "const_string", "value": "x"}}
OLDER = {
    "type": "structural_tag", "triggers": ["<f"],
    "structures": [{"begin": "<f=a>", "schema": SCHEMA, "end": "</f>"}],
}  # fmt: skip
NEWER = {
    "type": "triggered_tags", "triggers": ["<f"],
    "tags": [
        {"type": "tag", "begin": "<f=a>", "end": "</f>", "content": {"type": "json_schema", "json_schema": SCHEMA}},
    ],
}  # fmt: skip
YES_NO = '["yes","no"]'
FIELDS: list[tuple[dict[str, Any], GrammarSpec | None]] = [
    ({}, None),
    ({"response_format": None}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"max_whitespace": 3}, None),
    ({"structured_outputs": {"json_object": False}}, None),
    ({"response_format": {"type": "json_object"}}, GrammarSpec("json_object")),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
     GrammarSpec("json_schema", TEXT)),
    ({"response_format": TAG}, GrammarSpec("structural_tag", orjson.dumps(TAG).decode())),
    ({"json_schema": SCHEMA}, GrammarSpec("json_schema", TEXT)),
    ({"json_schema": TEXT}, GrammarSpec("json_schema", TEXT)),
    ({"json_schema": "$$ANY$$"}, GrammarSpec("json_object")),
    ({"regex": "a+"}, GrammarSpec("regex", "a+")),
    ({"ebnf": 'root ::= "x"'}, GrammarSpec("ebnf", 'root ::= "x"')),
    ({"choice": ["yes", "no"]}, GrammarSpec("choice", YES_NO)),
    ({"structural_tag": orjson.dumps(TAG).decode()}, GrammarSpec("structural_tag", orjson.dumps(TAG).decode())),
    ({"guided_json": SCHEMA}, GrammarSpec("json_schema", TEXT)),
    ({"guided_regex": "a+"}, GrammarSpec("regex", "a+")),
    ({"guided_choice": ["yes", "no"]}, GrammarSpec("choice", YES_NO)),
    ({"guided_grammar": "root ::= x"}, GrammarSpec("ebnf", "root ::= x")),
    ({"structured_outputs": {"json": TEXT}}, GrammarSpec("json_schema", TEXT)),
    ({"structured_outputs": {"regex": "a+"}}, GrammarSpec("regex", "a+")),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, GrammarSpec("choice", YES_NO)),
    ({"structured_outputs": {"grammar": "root ::= x"}}, GrammarSpec("ebnf", "root ::= x")),
    ({"structured_outputs": {"json_object": True}}, GrammarSpec("json_object")),
    ({"structured_outputs": {"structural_tag": TAG}}, GrammarSpec("structural_tag", orjson.dumps(TAG).decode())),
    ({"regex": "a", "max_whitespace": 2, "jump_forward": False}, GrammarSpec("regex", "a", 2, False)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "spec"), FIELDS)
async def test_every_way_to_say_it_gives_the_same_grammar_on_both_openai_routes(
    gw: Deployment, fields: dict[str, Any], spec: GrammarSpec | None
) -> None:
    for path, body in ((CHAT, {"messages": [{"role": "user", "content": "hi"}]}), (COMPLETIONS, {"prompt": "hi"})):
        status, answer = await gw.post(path, {**body, **fields})
        assert status == 200, answer
    assert [r.grammar for r in gw.tokenizer.requests] == [spec, spec]


async def test_a_structural_tag_of_the_older_form_is_rewritten(gw: Deployment) -> None:
    for value in (OLDER, orjson.dumps(OLDER).decode()):
        await gw.post(COMPLETIONS, {"prompt": "hi", "structural_tag": value})
    await gw.post(COMPLETIONS, {"prompt": "hi", "response_format": OLDER})
    for request in gw.tokenizer.requests:
        assert request.grammar is not None
        assert orjson.loads(request.grammar.source) == {"type": "structural_tag", "format": NEWER}
    assert len(gw.tokenizer.requests) == 3


async def test_a_batch_of_generate_has_a_grammar_per_prompt(gw: Deployment) -> None:
    params = [{"json_schema": TEXT}, {"choice": ["yes", "no"], "jump_forward": False}, {"regex": None}]
    status, _ = await gw.post(GENERATE, {"text": ["a", "b", "c"], "sampling_params": params})
    assert status == 200
    by_text = {r.text: r.grammar for r in gw.tokenizer.requests}
    choice = GrammarSpec("choice", YES_NO, jump_forward=False)
    assert by_text == {"a": GrammarSpec("json_schema", TEXT), "b": choice, "c": None}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"regex": "a", "response_format": {"type": "json_object"}}, "regex", "response_format and regex both"),
    ({"guided_json": {}, "ebnf": "x"}, "guided_json", "ebnf and guided_json both"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.regex", "structured_outputs.json and"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "one of"),
    ({"response_format": "json_object"}, "response_format", "must be an object"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
     "response_format.json_schema.schema", "missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
     "response_format.json_schema.schema", "an object"),
    ({"response_format": {"type": "structural_tag"}}, "response_format", "format"),
    ({"json_schema": "{"}, "json_schema", "not valid JSON"),
    ({"json_schema": "[1]"}, "json_schema", "JSON object"),
    ({"json_schema": '"\\ud800"'}, "json_schema", "not valid JSON"),
    ({"json_schema": True}, "json_schema", "must be"),
    ({"regex": ""}, "regex", "empty"),
    ({"regex": 3}, "regex", "a string"),
    ({"regex": "a\x00"}, "regex", "NUL"),
    ({"ebnf": "x" * 300_000}, "ebnf", "262,144"),
    ({"choice": []}, "choice", "0 entries"),
    ({"choice": ["a", ""]}, "choice[1]", "empty"),
    ({"choice": ["a", "b", "a"]}, "choice[2]", "same as choice[0]"),
    ({"choice": "yes"}, "choice", "an array"),
    ({"choice": ["a", 1]}, "choice[1]", "a string"),
    ({"regex": "a", "max_whitespace": 65}, "max_whitespace", "0 to 64"),
    ({"max_whitespace": "1"}, "max_whitespace", "an integer"),
    ({"jump_forward": 1}, "jump_forward", "true or false"),
    ({"structural_tag": {"format": []}}, "structural_tag", "format"),
    ({"structural_tag": {"structures": [{"begin": "a"}]}}, "structural_tag", "begin, schema and end"),
    ({"structural_tag": {"structures": [], "triggers": [1]}}, "structural_tag", "triggers"),
    ({"structural_tag": {**OLDER, "triggers": ["<g"]}}, "structural_tag", "none of the triggers"),
    ({"structured_outputs": {"json": 1}}, "structured_outputs.json", "must be"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "0 entries"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), WRONG)
async def test_what_no_grammar_can_be_is_a_400_that_names_it(
    gw: Deployment, fields: dict[str, Any], param: str, message: str
) -> None:
    status, body = await gw.post(COMPLETIONS, {"prompt": "hi", **fields})
    assert (status, body["error"]["param"]) == (400, param)
    assert message in body["error"]["message"]
    assert not gw.tokenizer.requests


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"guided_regex": "("}, "regex", "guided_regex"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "json_schema",
         "response_format.json_schema.schema"),
    ],
)  # fmt: skip
async def test_a_grammar_refused_behind_the_gateway_is_named_as_the_client_wrote_it(
    gw: Deployment, fields: dict[str, Any], kind: str, param: str
) -> None:
    gw.tokenizer.script = lambda _: Script(refuse=InvalidRequest("unclosed '('", param=kind))
    for path, body in ((CHAT, {"messages": [{"role": "user", "content": "hi"}]}), (COMPLETIONS, {"prompt": "hi"})):
        status, answer = await gw.post(path, {**body, **fields})
        assert (status, answer["error"]["param"]) == (400, param)

"""A request's grammar as a part of a structural tag, so that tool calls or reasoning can stand beside it."""

from __future__ import annotations

from typing import Any

import orjson

from services.tokenizer.tool_calls.argument_grammar import Format, either, json_schema
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec


def as_format(grammar: GrammarSpec) -> Format:
    """The format that matches what the grammar matches.

    Raises:
        InvalidRequest: the grammar's source is not what its kind says.
    """
    match grammar.kind:
        case "json_object":
            return json_schema({"type": "object"})
        case "json_schema":
            return json_schema(_loaded(grammar))
        case "regex":
            return {"type": "regex", "pattern": grammar.source}
        case "ebnf":
            return {"type": "grammar", "grammar": grammar.source}
        case "choice":
            return either([{"type": "const_string", "value": text} for text in _loaded(grammar)])
        case "structural_tag":
            form: Format = _loaded(grammar)["format"]
            return form


def _loaded(grammar: GrammarSpec) -> Any:
    """The JSON of a grammar's source.

    Raises:
        InvalidRequest: it is none of the kind that it should be.
    """
    try:
        value = orjson.loads(grammar.source)
    except orjson.JSONDecodeError as fault:
        raise InvalidRequest(f"the {grammar.kind} is not valid JSON: {fault}", param=grammar.kind) from fault
    if grammar.kind == "choice":
        fits = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    else:
        fits = isinstance(value, dict) and (grammar.kind != "structural_tag" or isinstance(value.get("format"), dict))
    if not fits:
        raise InvalidRequest(f"the {grammar.kind} is not what it should be, see GrammarSpec.source", param=grammar.kind)
    return value

"""A checked JSON Schema as llguidance reads it, and how JSON is spelled."""

from __future__ import annotations

from typing import Any

from services.scheduler.grammar.regex_check import check_regex
from services.scheduler.grammar.schema_check import Schema, check_schema, subschemas
from services.scheduler.grammar.schema_size import check_sizes
from shared.errors import InvalidRequest


def checked_schema(root: Schema) -> Schema:
    """A JSON Schema as it is enforced.

    Raises:
        InvalidRequest: names the place in the schema.
    """
    schema = check_schema(root)
    check_sizes(schema)
    for path, node in subschemas(schema):
        if isinstance(node, dict):
            for pattern in [node["pattern"]] if "pattern" in node else node.get("patternProperties", ()):
                check_regex(pattern, "json_schema", f" at {path or '/'}")
    if schema is False:
        raise InvalidRequest("json_schema at /: false: no text satisfies it", param="json_schema")
    return schema


def schema_grammar(schema: Schema, max_whitespace: int) -> str:
    """A checked schema in llguidance's JSON."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema({} if schema is True else schema, defaults=json_options(max_whitespace))  # type: ignore[arg-type]


def json_options(max_whitespace: int) -> Any:
    r"""How JSON is spelled: compact or with bounded whitespace, and one spelling per character.

    \uXXXX and \/ are not generated. Otherwise a property could be spelled in a second way, past its schema.
    """
    spelling = {"json_allowed_escapes": '"\\bfnrt', "json_allow_general_unicode_escapes": False}
    if max_whitespace == 0:
        return {**spelling, "whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    return {**spelling, "whitespace_flexible": True, "whitespace_pattern": rf"[ \t\r\n]{{1,{max_whitespace}}}"}

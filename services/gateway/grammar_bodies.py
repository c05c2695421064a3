"""Fields of request bodies that say what the generated text must look like, in the words of three servers.

OpenAI: `response_format`. SGLang: `json_schema`, `regex`, `ebnf`, `structural_tag`. vLLM: `structured_outputs` and the
older `guided_*`. `grammar.py` makes one `GrammarSpec` of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

JsonSchema = str | dict[str, Any]
"""A schema, or its JSON text."""

GRAMMAR_HELP = {
    "response_format": "OpenAI's way to ask for JSON; also structural tags.",
    "json_schema": "The text is JSON that fits this schema (an object, or its JSON text).",
    "regex": "The text matches this regular expression as a whole.",
    "ebnf": "The text follows this EBNF grammar; its start is the rule `root`.",
    "choice": "The text is one of these strings.",
    "structural_tag": "Free text with constrained parts: an object in xgrammar's format, or its JSON text.",
    "structured_outputs": "vLLM's way to give one grammar.",
    "guided_json": "Same as json_schema.",
    "guided_regex": "Same as regex.",
    "guided_choice": "Same as choice.",
    "guided_grammar": "Same as ebnf.",
    "max_whitespace": "Most whitespace characters between two tokens of JSON, 0 to 64; 0 (default) = compact.",
    "jump_forward": "Append what the grammar forces instead of sampling it (default true).",
}


@dataclass(frozen=True, slots=True)
class NamedSchema:
    """`response_format.json_schema`. The schema is enforced whatever `strict` says."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class TagStructure:
    """A structural tag of the older form: `begin`, then JSON that fits `schema`, then `end`."""

    begin: str
    end: str
    schema: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """`json_schema` belongs to that type; `format`, or `structures` with `triggers`, to structural tags."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: NamedSchema | None = None
    format: dict[str, Any] | None = None
    structures: list[TagStructure] | None = None
    triggers: list[str] | None = None


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """Exactly one field."""

    json: JsonSchema | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: JsonSchema | None = None

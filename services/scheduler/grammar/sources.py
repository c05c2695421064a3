"""From what a user wrote to what llguidance reads, one function per kind of grammar.

Runs in the compile process, on hostile text. All checks that can say where something is wrong happen here.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from services.scheduler.grammar.ebnf import ebnf_to_lark
from services.scheduler.grammar.json_grammar import checked_schema, schema_grammar
from services.scheduler.grammar.regex_check import check_regex
from services.scheduler.grammar.regex_text import escaped, lark_regex
from services.scheduler.grammar.schema_check import parse_schema
from services.scheduler.grammar.structural_tag import StructuralTag
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec

MAX_CHOICES = 10_000


def llguidance_source(spec: GrammarSpec, special_tokens: Mapping[str, int]) -> str:
    """The grammar in llguidance's JSON.

    Args:
        special_tokens: text to id, for structural tags that begin or end with one.

    Raises:
        InvalidRequest: the text is wrong, or asks for what cannot be enforced; says where.
    """
    from llguidance import LLMatcher

    match spec.kind:
        case "json_object":
            return schema_grammar({"type": "object"}, spec.max_whitespace)
        case "json_schema":
            return schema_grammar(checked_schema(parse_schema(spec.source)), spec.max_whitespace)
        case "regex":
            check_regex(spec.source, "regex")
            return LLMatcher.grammar_from_lark(f"start: /{lark_regex(spec.source)}/")
        case "choice":
            return LLMatcher.grammar_from_regex("|".join(map(escaped, parse_choices(spec.source))))
        case "ebnf":
            return LLMatcher.grammar_from_lark(ebnf_to_lark(spec.source))
        case "structural_tag":
            return LLMatcher.grammar_from_lark(StructuralTag(special_tokens, spec.max_whitespace).lark(spec.source))
    raise InvalidRequest(f"unknown kind of grammar {spec.kind!r}", param="grammar")


def parse_choices(source: str) -> list[str]:
    """The texts of a choice.

    Raises:
        InvalidRequest: not a JSON array of different, non-empty strings.
    """
    try:
        choices = orjson.loads(source)
    except orjson.JSONDecodeError as fault:
        raise InvalidRequest(f"choice is not JSON: {fault}", param="choice") from fault
    if not isinstance(choices, list) or not choices or len(choices) > MAX_CHOICES:
        raise InvalidRequest(f"choice must be a list of 1 to {MAX_CHOICES:,} strings", param="choice")
    seen: dict[str, int] = {}
    for i, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise InvalidRequest(f"choice[{i}] must be a string that is not empty", param="choice")
        if choice in seen:
            raise InvalidRequest(f"choice[{i}] is the same as choice[{seen[choice]}]: {choice[:50]!r}", param="choice")
        seen[choice] = i
    return choices

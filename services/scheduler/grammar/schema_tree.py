"""JSON Schemas as trees of bytes: the plain ones, of which an automaton can be made (see `regex_tree`).

Plain are objects without more properties than are named, arrays, strings that are free but for their length, numbers,
and literals; spelled compactly. Only their structure has to be exact: where the library allows less of a character or
a literal than is said here, no text comes to those places.
"""

from __future__ import annotations

import json
from typing import Any

from services.scheduler.grammar.regex_tree import (
    NOTHING,
    Beyond,
    Choice,
    Literal,
    NotPlain,
    Repeat,
    Sequence,
    Symbol,
    Tree,
    bits,
)
from services.scheduler.grammar.schema_check import Schema, ref_target

MOST_NODES = 2_000
MOST_INTEGERS = 200
"""A range of integers is plain when it has no more: they are literals then."""
_QUOTE = Literal(b'"')
_CHARACTER = Choice((
    Symbol(bits((32, 33), (35, 91), (93, 127)), Beyond.ALL),
    Sequence((Literal(b"\\"), Symbol(sum(1 << byte for byte in b'"\\bfnrt')))),
))  # fmt: skip
_DIGIT = Symbol(bits((48, 57)))
_INTEGER = Sequence((
    Repeat(Literal(b"-"), 0, 1),
    Choice((Literal(b"0"), Sequence((Symbol(bits((49, 57))), Repeat(_DIGIT, 0, None))))),
))  # fmt: skip
_FRACTION = Sequence((Literal(b"."), Repeat(_DIGIT, 1, None)))
_EXPONENT = Sequence((Symbol(1 << 69 | 1 << 101), Repeat(Symbol(1 << 43 | 1 << 45), 0, 1), Repeat(_DIGIT, 1, None)))
_NUMBER = Sequence((_INTEGER, Repeat(_FRACTION, 0, 1), Repeat(_EXPONENT, 0, 1)))
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}  # fmt: skip


def schema_tree(root: Schema) -> Tree:
    """
    Args:
        root: as `schema_check.check_schema` gives it.

    Raises:
        NotPlain: see there.
    """
    return _Trees(root).node(root, ())


class _Trees:
    """Of one document."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._nodes = 0

    def node(self, schema: Any, within: tuple[str, ...]) -> Tree:
        """
        Args:
            within: references that led here.
        """
        self._nodes += 1
        if self._nodes > MOST_NODES or not isinstance(schema, dict):
            raise NotPlain("a large schema, or one that takes anything")
        given = schema.keys() - {"$defs", "definitions"}
        if (reference := ref_target(schema)) is not None:
            if given != {"$ref"} or reference in within:
                raise NotPlain("a recursive reference")
            return self.node(self._target(reference), (*within, reference))
        for keyword in ("anyOf", "oneOf"):
            if keyword in given:
                if given != {keyword}:
                    raise NotPlain("a combination of schemas")
                return Choice(tuple(self.node(branch, within) for branch in schema[keyword]))
        if "const" in given or "enum" in given:
            return Choice(tuple(map(_spelled, [schema["const"]] if "const" in given else schema["enum"])))
        types = schema.get("type", [])
        names = types if isinstance(types, list) else [types]
        known = set().union(*(_KEYWORDS.get(name, set()) for name in names))
        counts = (schema.get(keyword, 0) for keyword in ("minLength", "maxLength", "minItems", "maxItems"))
        if not names or not given - {"type"} <= known or not all(isinstance(count, int) for count in counts):
            raise NotPlain("another keyword")
        return Choice(tuple(self._typed(name, schema, within) for name in names))

    def _typed(self, name: str, schema: dict[str, Any], within: tuple[str, ...]) -> Tree:
        match name:
            case "object":
                return self._object(schema, within)
            case "array":
                return self._array(schema, within)
            case "string":
                return _string(schema.get("minLength", 0), schema.get("maxLength"))
            case "integer":
                return _integer(schema)
            case "number":
                return _NUMBER
            case "boolean":
                return Choice((Literal(b"true"), Literal(b"false")))
            case "null":
                return Literal(b"null")
        raise NotPlain("another type")

    def _object(self, schema: dict[str, Any], within: tuple[str, ...]) -> Tree:
        properties, required = schema.get("properties", {}), set(schema.get("required", ()))
        if schema.get("additionalProperties") is not False or not required <= properties.keys():
            raise NotPlain("properties with any name")
        members = [
            (Sequence((_spelled(key), Literal(b":"), self.node(value, within))), key in required)
            for key, value in properties.items()
        ]
        firsts: list[Tree] = []
        for i, (member, needed) in enumerate(members):
            others = [(Sequence((Literal(b","), other)), must) for other, must in members[i + 1 :]]
            firsts.append(Sequence((member, *(other if must else Repeat(other, 0, 1) for other, must in others))))
            if needed:
                break
        else:
            firsts.append(NOTHING)
        return Sequence((Literal(b"{"), Choice(tuple(firsts)), Literal(b"}")))

    def _array(self, schema: dict[str, Any], within: tuple[str, ...]) -> Tree:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return Literal(b"[]")
        item = self.node(schema.get("items"), within)
        more = Repeat(Sequence((Literal(b","), item)), max(least - 1, 0), None if most is None else most - 1)
        some = Sequence((item, more))
        return Sequence((Literal(b"["), some if least else Repeat(some, 0, 1), Literal(b"]")))

    def _target(self, reference: str) -> Any:
        node: Any = self._root
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, dict) or name not in node:
                raise NotPlain("a reference of another spelling")
            node = node[name]
        return node


def _string(least: int, most: int | None) -> Tree:
    return Sequence((_QUOTE, Repeat(_CHARACTER, least, most), _QUOTE))


def _integer(schema: dict[str, Any]) -> Tree:
    if len(schema) == 1:
        return _INTEGER
    low = max((schema[k] + over for k, over in (("minimum", 0), ("exclusiveMinimum", 1)) if k in schema), default=None)
    high = min((schema[k] - over for k, over in (("maximum", 0), ("exclusiveMaximum", 1)) if k in schema), default=None)
    if not isinstance(low, int) or not isinstance(high, int) or not 0 <= high - low < MOST_INTEGERS:
        raise NotPlain("a range of many integers")
    return Choice(tuple(_spelled(value) for value in range(low, high + 1)))


def _spelled(value: Any) -> Literal:
    return Literal(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())

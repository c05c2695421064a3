"""A user's JSON Schema, checked keyword by keyword and brought into the form that is enforced.

Everything that would not be enforced is refused with the JSON pointer of its place; annotations are dropped; older
spellings (nullable, number formats) are rewritten. Runs in the compile process. Knows no grammar library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import orjson

from services.scheduler.grammar.schema_keywords import (
    ENFORCED,
    EXACT_FORMATS,
    NUMBER_FORMATS,
    REFUSED,
    STRING_FORMATS,
    TYPES,
    fate,
)
from shared.errors import InvalidRequest

MAX_DEPTH = 64
MAX_SCHEMAS = 10_000
MAX_ENUM_VALUES = 5_000
MAX_LITERAL_CHARS = 4_096
MAX_PATTERN_CHARS = 4_096
MAX_OPTIONAL = 1_000
_SCHEMAS = ("additionalProperties", "items", "additionalItems")
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COUNTS = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
)
Schema = dict[str, Any] | bool


class SchemaFault(InvalidRequest):
    """A place in a schema that is wrong or not supported."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(f"json_schema at {path or '/'}: {text}", param="json_schema")


def parse_schema(text: str) -> Schema:
    """The schema in a JSON text.

    Raises:
        InvalidRequest: no JSON, or neither an object nor true or false.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as fault:
        raise InvalidRequest(f"json_schema is not JSON: {fault}", param="json_schema") from fault
    if not isinstance(value, dict | bool):
        raise SchemaFault("", f"a schema is an object or true or false, not {_kind(value)}")
    return value


def check_schema(root: Schema) -> Schema:
    """The schema as it is enforced: without annotations, older spellings rewritten; pointers into it stay valid.

    Raises:
        SchemaFault: names the place and what to change.
    """
    walk = _Walk(root)
    out = walk.schema(root, "", 0)
    for path, target in walk.refs:
        if target not in walk.nodes:
            raise SchemaFault(path, f"$ref to {target or '/'}, which is no schema of this document")
    return out


class _Walk:
    """One pass over one document."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.nodes: set[str] = set()
        self.refs: list[tuple[str, str]] = []
        self.enum_values = 0

    def schema(self, node: Any, path: str, depth: int) -> Schema:
        self.nodes.add(path)
        if depth > MAX_DEPTH:
            raise SchemaFault(path, f"schemas nested deeper than {MAX_DEPTH}")
        if len(self.nodes) > MAX_SCHEMAS:
            raise SchemaFault(path, f"more than {MAX_SCHEMAS:,} subschemas")
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise SchemaFault(path, f"a schema is an object or true or false, not {_kind(node)}")
        out: dict[str, Any] = {}
        for keyword, value in node.items():
            where = f"{path}/{_escaped(keyword)}"
            match fate(keyword):
                case "refused":
                    raise SchemaFault(where, _refusal(keyword))
                case "annotation":
                    if keyword == "$id" and path:
                        raise SchemaFault(where, "$id below the root is not supported: use pointers into one document")
                case "enforced":
                    out[keyword] = self.value(keyword, value, where, depth)
        return _rewritten(out, path)

    def value(self, keyword: str, value: Any, path: str, depth: int) -> Any:
        if keyword in _SCHEMAS and not isinstance(value, list):
            return self.schema(value, path, depth + 1)
        if keyword in _LISTS or keyword == "items":
            return self.list_of_schemas(value, path, depth)
        if keyword in _MAPS:
            return self.map_of_schemas(keyword, value, path, depth)
        if keyword == "$ref":
            self.refs.append((path, _target(value, path)))
        elif keyword in ("enum", "const"):
            self.literals(keyword, value, path)
        else:
            _CHECKS[keyword](value, path)
        return value

    def list_of_schemas(self, value: Any, path: str, depth: int) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise SchemaFault(path, f"must be a list of schemas with at least one entry, got {_kind(value)}")
        return [self.schema(item, f"{path}/{i}", depth + 1) for i, item in enumerate(value)]

    def map_of_schemas(self, keyword: str, value: Any, path: str, depth: int) -> dict[str, Schema]:
        if not isinstance(value, dict):
            raise SchemaFault(path, f"must be an object of schemas, got {_kind(value)}")
        for name in value:
            if keyword == "properties":
                _check_literal(name, f"{path}/{_escaped(name)}")
            elif keyword == "patternProperties":
                _check_pattern(name, f"{path}/{_escaped(name)}")
        return {k: self.schema(v, f"{path}/{_escaped(k)}", depth + 1) for k, v in value.items()}

    def literals(self, keyword: str, value: Any, path: str) -> None:
        if keyword == "const":
            return _check_literal(value, path)
        if not isinstance(value, list) or not value:
            raise SchemaFault(path, "must be a list with at least one value")
        self.enum_values += len(value)
        if self.enum_values > MAX_ENUM_VALUES:
            raise SchemaFault(path, f"more than {MAX_ENUM_VALUES:,} enum values")
        for i, item in enumerate(value):
            _check_literal(item, f"{path}/{i}")
        return None


def subschemas(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema below and including `node` with its pointer, inner ones first."""
    if isinstance(node, dict):
        for keyword, value in node.items():
            where = f"{path}/{_escaped(keyword)}"
            if keyword in _MAPS:
                for name, child in value.items():
                    yield from subschemas(child, f"{where}/{_escaped(name)}")
            elif isinstance(value, list) and (keyword in _LISTS or keyword == "items"):
                for i, child in enumerate(value):
                    yield from subschemas(child, f"{where}/{i}")
            elif keyword in _SCHEMAS:
                yield from subschemas(value, where)
    yield path, node


def ref_target(node: dict[str, Any]) -> str | None:
    """The pointer that a checked schema's $ref names, None without one."""
    return _target(node["$ref"], "") if "$ref" in node else None


# One keyword at a time.
def _refusal(keyword: str) -> str:
    if keyword in REFUSED:
        return f"{keyword} cannot be enforced: {REFUSED[keyword]}"
    return f"unknown keyword {keyword!r}: take it out, or name it x-{keyword} if it is meant for other readers"


def _target(value: Any, path: str) -> str:
    if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
        raise SchemaFault(path, "only pointers into the same document are supported, such as #/$defs/name")
    return unquote(value[1:])


def _check_literal(value: Any, path: str) -> None:
    """Values that a generation can spell: bounded, and without the control characters that only \\u can write."""
    for text in _strings(value):
        if len(text) > MAX_LITERAL_CHARS:
            raise SchemaFault(path, f"a string of {len(text):,} characters, the limit is {MAX_LITERAL_CHARS:,}")
        bad = next((c for c in text if (c < " " and c not in "\b\t\n\f\r") or c == "\x7f"), None)
        if bad is not None:
            raise SchemaFault(path, f"contains the control character U+{ord(bad):04X}, which is never generated")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _check_type(value: Any, path: str) -> None:
    names = value if isinstance(value, list) else [value]
    if not names or any(not isinstance(n, str) or n not in TYPES for n in names) or len({*names}) < len(names):
        raise SchemaFault(path, f"must be one of {', '.join(TYPES)}, or a list of different ones")


def _check_names(value: Any, path: str) -> None:
    if not isinstance(value, list) or any(not isinstance(name, str) for name in value):
        raise SchemaFault(path, "must be a list of property names")
    for i, name in enumerate(value):
        _check_literal(name, f"{path}/{i}")


def _check_count(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise SchemaFault(path, f"must be a whole number from 0 on, got {value!r}")


def _check_number(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaFault(path, f"must be a number, got {_kind(value)}")


def _check_exclusive(value: Any, path: str) -> None:
    if not isinstance(value, bool | int | float):
        raise SchemaFault(path, f"must be a number, got {_kind(value)}")


def _check_multiple(value: Any, path: str) -> None:
    _check_number(value, path)
    if value <= 0:
        raise SchemaFault(path, f"must be greater than 0, got {value}")


def _check_flag(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        raise SchemaFault(path, f"must be true or false, got {_kind(value)}")


def _check_pattern(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise SchemaFault(path, f"must be a regular expression, got {_kind(value)}")
    if len(value) > MAX_PATTERN_CHARS:
        raise SchemaFault(path, f"a pattern of {len(value):,} characters, the limit is {MAX_PATTERN_CHARS:,}")


def _check_format(value: Any, path: str) -> None:
    if value not in (*STRING_FORMATS, *NUMBER_FORMATS):
        raise SchemaFault(path, f"format {value!r} cannot be enforced; these can: {', '.join(STRING_FORMATS)}")


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "type": _check_type,
    "required": _check_names,
    "pattern": _check_pattern,
    "format": _check_format,
    "multipleOf": _check_multiple,
    "uniqueItems": _check_flag,
    "nullable": _check_flag,
    "minimum": _check_number,
    "maximum": _check_number,
    "exclusiveMinimum": _check_exclusive,
    "exclusiveMaximum": _check_exclusive,
    **{name: _check_count for pair in _COUNTS for name in pair},
}
assert {*_CHECKS, *_SCHEMAS, *_LISTS, *_MAPS, "$ref", "enum", "const"} == {*ENFORCED}


# Keywords that depend on each other.
def _rewritten(node: dict[str, Any], path: str) -> dict[str, Any]:
    for low, high in (*_COUNTS, ("minimum", "maximum")):
        if low in node and high in node and node[low] > node[high]:
            raise SchemaFault(path, f"{low} {node[low]} is more than {high} {node[high]}: nothing satisfies it")
    _rewrite_nullable(node, path)
    _rewrite_format(node, path)
    _rewrite_object(node, path)
    if node.pop("uniqueItems", False) and node.get("maxItems", 2) > 1:
        raise SchemaFault(f"{path}/uniqueItems", "cannot be enforced on arrays of more than one item: leave it out")
    return node


def _rewrite_nullable(node: dict[str, Any], path: str) -> None:
    if not node.pop("nullable", False):
        return
    if "type" not in node:
        raise SchemaFault(f"{path}/nullable", "needs a type beside it: use anyOf with {type: null} instead")
    names = node["type"] if isinstance(node["type"], list) else [node["type"]]
    node["type"] = names if "null" in names else [*names, "null"]


def _rewrite_format(node: dict[str, Any], path: str) -> None:
    name = node.get("format")
    if name in EXACT_FORMATS and "pattern" not in node:
        node["pattern"] = EXACT_FORMATS[node.pop("format")]
    if name not in NUMBER_FORMATS:
        return
    if not {node.get("type")} <= {"integer", "number"}:
        raise SchemaFault(f"{path}/format", f"format {name!r} needs the type integer or number beside it")
    del node["format"]
    if bounds := NUMBER_FORMATS[name]:
        node["minimum"] = max(bounds[0], node.get("minimum", bounds[0]))
        node["maximum"] = min(bounds[1], node.get("maximum", bounds[1]))


def _rewrite_object(node: dict[str, Any], path: str) -> None:
    names, required = node.get("properties", {}), {*node.get("required", [])}
    optional = len([name for name in names if name not in required])
    if optional > MAX_OPTIONAL:
        raise SchemaFault(f"{path}/properties", f"{optional:,} optional properties, the limit is {MAX_OPTIONAL:,}")
    if node.get("minProperties", 0) <= len(required):
        node.pop("minProperties", None)
    closed = node.get("additionalProperties") is False and not node.get("patternProperties")
    if closed and node.get("maxProperties", 0) >= len(names):
        node.pop("maxProperties", None)
    for keyword in ("minProperties", "maxProperties"):
        if keyword in node and optional:
            raise SchemaFault(f"{path}/{keyword}", "can only be enforced when every name in properties is required")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")

"""What becomes of each keyword of JSON Schema: the one table that the checker, the tests and the docs read.

Enforced: the masks hold it, whatever the model wants. Annotation: says nothing about the value, dropped. Refused: the
request fails and names the place; nothing is silently ignored.
"""

from __future__ import annotations

from typing import Literal

Fate = Literal["enforced", "annotation", "refused"]

ENFORCED: dict[str, str] = {
    "type": "one name or a list of names",
    "enum": "at most 5,000 values; objects with their keys in the order given",
    "const": "objects with their keys in the order given",
    "properties": "generated in the order given",
    "required": "names without a schema in `properties` come last",
    "additionalProperties": "a schema, true (the default) or false",
    "patternProperties": "",
    "minProperties": "when every name in `properties` is required, or when `required` already implies it",
    "maxProperties": "when every name in `properties` is required, or when `properties` already implies it",
    "items": "a schema, true, false or (older drafts) a list, which then means prefixItems",
    "prefixItems": "",
    "additionalItems": "after a list in `items`",
    "minItems": "",
    "maxItems": "",
    "uniqueItems": "false, or true on arrays of at most one item; otherwise refused",
    "minLength": "counted in characters",
    "maxLength": "counted in characters",
    "pattern": "no look-around, no back references, no word boundaries",
    "format": "the formats listed below; other ones are refused",
    "minimum": "",
    "maximum": "",
    "exclusiveMinimum": "a number, or true beside `minimum` (draft 4)",
    "exclusiveMaximum": "a number, or true beside `maximum` (draft 4)",
    "multipleOf": "",
    "anyOf": "",
    "oneOf": "when no value can match two branches (differing types, or a required property with differing constants); "
    "otherwise refused",
    "allOf": "",
    "$ref": "`#` and pointers into the same document (`#/$defs/name`); may recurse",
    "$defs": "",
    "definitions": "",
    "nullable": "true adds null to `type` (OpenAPI 3.0)",
}

ANNOTATIONS: tuple[str, ...] = (
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
    "$schema", "$id", "$anchor", "contentEncoding", "contentMediaType", "contentSchema", "discriminator",
    "externalDocs", "xml",
)  # fmt: skip
"""Besides these, every keyword that starts with `x-`. `$id` only at the root."""

REFUSED: dict[str, str] = {
    "not": "list what is allowed instead (enum, anyOf)",
    "if": "use anyOf with one branch per case",
    "then": "use anyOf with one branch per case",
    "else": "use anyOf with one branch per case",
    "dependentRequired": "use anyOf with one branch per case",
    "dependentSchemas": "use anyOf with one branch per case",
    "dependencies": "use anyOf with one branch per case",
    "propertyNames": "use patternProperties with additionalProperties false",
    "contains": "describe the items with prefixItems",
    "minContains": "describe the items with prefixItems",
    "maxContains": "describe the items with prefixItems",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "use $ref",
    "$recursiveRef": "use $ref",
    "$recursiveAnchor": "use $ref",
    "id": "use $ref with a pointer",
}

STRING_FORMATS: tuple[str, ...] = (
    "date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
)  # fmt: skip
_DATE = (
    r"[1-9]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    r"|(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
EXACT_FORMATS: dict[str, str] = {
    "date": f"^(?:{_DATE})$",
    "time": f"^{_TIME}$",
    "date-time": f"^(?:{_DATE})T{_TIME}$",
}
"""Stricter than the engine's: no February 30, no leap seconds. RFC 3339 without its rare spellings."""
NUMBER_FORMATS: dict[str, tuple[int, int] | None] = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "float": None,
    "double": None,
}
"""Formats of OpenAPI for numbers: the range that they mean, None for no range."""
TYPES: tuple[str, ...] = ("null", "boolean", "integer", "number", "string", "array", "object")


def fate(keyword: str) -> Fate:
    """What becomes of a keyword; unknown ones are refused."""
    if keyword in ENFORCED:
        return "enforced"
    if keyword in ANNOTATIONS or keyword.startswith("x-"):
        return "annotation"
    return "refused"

"""Random JSON Schemas within what is enforced, the same for the same seed."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("id", "name", "Ünïcode", "a b", 'quo"te', "x/y", "kind", "tags", "value", "n0")
PATTERNS = ("^[a-z]{1,4}$", "^\\d{3}-\\d{4}$", "[xyz]", "^(foo|bar)+$", "^[^\\s]*$", "^#[0-9a-f]{6}$")
FORMATS = ("date", "time", "email", "ipv4", "uuid", "hostname", "duration")


def random_schema(seed: int) -> dict[str, Any]:
    """A schema that some finite text satisfies."""
    rng = random.Random(seed)
    root = _schema(rng, 3)
    if rng.random() < 0.3:
        parts = {"tree": {"$ref": "#/$defs/node"}, "v": root}
        root = {"type": "object", "properties": parts, "required": ["tree"], "additionalProperties": False}
        root["$defs"] = {"node": _node(rng)}
    if rng.random() < 0.3:
        root |= {"title": "A title", "description": 'Says "nothing"', "x-order": 3}
    return root


def _node(rng: random.Random) -> dict[str, Any]:
    """A recursive definition that can end."""
    children = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
    return {"type": "object", "properties": {"leaf": _leaf(rng), "children": children}, "required": ["leaf"],
            "additionalProperties": False}  # fmt: skip


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    makers = [_leaf] if depth == 0 else [_leaf, _object, _object, _array, _any_of, _one_of, _all_of]
    maker: Any = rng.choice(makers)
    return maker(rng) if maker is _leaf else maker(rng, depth - 1)


def _leaf(rng: random.Random) -> dict[str, Any]:
    return rng.choice([_string, _string, _integer, _number, _literal, _nullable])(rng)


def _string(rng: random.Random) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "string"}
    match rng.randrange(5):
        case 0:
            low = rng.randrange(5)
            out |= {"minLength": low, "maxLength": low + rng.randrange(20)}
        case 1:
            out["pattern"] = rng.choice(PATTERNS)
        case 2:
            out["format"] = rng.choice(FORMATS)
        case 3:
            out["maxLength"] = rng.randrange(1, 200)
    return out


def _integer(rng: random.Random) -> dict[str, Any]:
    low = rng.randrange(-1000, 1000)
    match rng.randrange(4):
        case 0:
            return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(500)}
        case 1:
            return {"type": "integer", "exclusiveMinimum": low, "multipleOf": rng.choice([1, 2, 5, 7])}
        case 2:
            return {"type": "integer", "exclusiveMaximum": low}
    return {"type": "integer"}


def _number(rng: random.Random) -> dict[str, Any]:
    low = round(rng.uniform(-5, 5), rng.randrange(3))
    if rng.random() < 0.5:
        return {"type": "number", "minimum": low, "exclusiveMaximum": low + rng.choice([0.25, 1, 12.5])}
    return {"type": "number"}


def _literal(rng: random.Random) -> dict[str, Any]:
    values: list[Any] = ["a", "ab", 'b"c', "é\n", 1, 2.5, True, None, [1, "x"], {"k": [None]}]
    return {"const": rng.choice(values)} if rng.random() < 0.3 else {"enum": rng.sample(values, rng.randrange(1, 6))}


def _nullable(rng: random.Random) -> dict[str, Any]:
    return {"type": rng.sample(["null", "boolean", "integer", "string"], rng.randrange(1, 4))}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randrange(1, 6))
    out: dict[str, Any] = {"type": "object", "properties": {name: _schema(rng, depth) for name in names}}
    out["required"] = [name for name in names if rng.random() < 0.6]
    match rng.randrange(5):
        case 0 | 1 | 2:
            out["additionalProperties"] = False
        case 3:
            out["additionalProperties"] = _leaf(rng)
    return out


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(3)
    out: dict[str, Any] = {
        "type": "array",
        "items": _schema(rng, depth),
        "minItems": low,
        "maxItems": low + rng.randrange(4),
    }
    if rng.random() < 0.3:
        out["prefixItems"] = [_schema(rng, depth) for _ in range(rng.randrange(1, 3))]
    return out


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(rng, depth) for _ in range(rng.randrange(1, 4))]}


def _one_of(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"type": "null"},
        {"type": "boolean"},
        _integer(rng),
        _string(rng),
        _array(rng, depth),
    ]
    return {"oneOf": rng.sample(kinds, rng.randrange(2, 5))}


def _all_of(rng: random.Random, depth: int) -> dict[str, Any]:
    first, second = _object(rng, depth), _object(rng, depth)
    for part in (first, second):
        part.pop("additionalProperties", None)
    second["properties"] = {k: v for k, v in second["properties"].items() if k not in first["properties"]}
    second["required"] = [k for k in second["required"] if k in second["properties"]]
    return {"allOf": [first, second]}

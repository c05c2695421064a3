"""The shortest text that satisfies each part of a schema.

Finds what no finite text satisfies (a recursion without an end), which engines would follow for ever, and texts so long
that an engine would walk them again at every mask. Works on schemas that `schema_check` passed.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from services.scheduler.grammar.schema_check import Schema, SchemaFault, ref_target, subschemas
from services.scheduler.grammar.schema_keywords import TYPES

MAX_SHORTEST_CHARS = 8_192
_PLAIN = {"null": 4.0, "boolean": 4.0, "integer": 1.0, "number": 1.0}


def check_sizes(root: Schema) -> None:
    """Refuse parts that no finite text satisfies, or only a very long one.

    Raises:
        SchemaFault: names the place.
    """
    nodes = dict(subschemas(root))
    sizes = _fixpoint(nodes, follow=True)
    local = _fixpoint(nodes, follow=False) if math.inf in sizes.values() else sizes
    for path, size in sizes.items():
        if math.isinf(size) and not math.isinf(local[path]):
            raise SchemaFault(path, "it refers to itself without an end: no finite text satisfies it")
        if MAX_SHORTEST_CHARS < size < math.inf:
            raise SchemaFault(
                path, f"its shortest text has {size:,.0f} characters, the limit is {MAX_SHORTEST_CHARS:,}"
            )


def _fixpoint(nodes: dict[str, Schema], *, follow: bool) -> dict[str, float]:
    """Least sizes. With `follow` off every $ref counts as satisfied."""
    sizes = dict.fromkeys(nodes, math.inf)
    changed = True
    while changed:
        changed = False
        for path, node in nodes.items():
            size = _Size(sizes, path, follow).of(node)
            if size < sizes[path]:
                sizes[path], changed = size, True
    return sizes


class _Size:
    """The size of one node, given the sizes of its children."""

    def __init__(self, sizes: dict[str, float], path: str, follow: bool) -> None:
        self._sizes = sizes
        self._path = path
        self._follow = follow

    def of(self, node: Schema) -> float:
        if isinstance(node, bool):
            return 1.0 if node else math.inf
        parts = [self._by_type(node)]
        if "const" in node:
            parts.append(_length(node["const"]))
        if "enum" in node:
            parts.append(min(map(_length, node["enum"])))
        for keyword in ("anyOf", "oneOf"):
            branches = [self._child(f"{keyword}/{i}") for i in range(len(node.get(keyword, ())))]
            parts += [min(branches)] if branches else []
        parts += [self._child(f"allOf/{i}") for i in range(len(node.get("allOf", ())))]
        target = ref_target(node)
        if target is not None:
            parts.append(self._sizes[target] if self._follow else 1.0)
        return max(parts)

    def _by_type(self, node: dict[str, Any]) -> float:
        names = node.get("type", TYPES)
        return min(self._of_type(node, name) for name in ([names] if isinstance(names, str) else names))

    def _of_type(self, node: dict[str, Any], name: str) -> float:
        if name == "string":
            return 2.0 + node.get("minLength", 0)
        if name == "array":
            return self._array(node)
        return self._object(node) if name == "object" else _PLAIN[name]

    def _array(self, node: dict[str, Any]) -> float:
        count = node.get("minItems", 0)
        fixed = node.get("prefixItems", node["items"] if isinstance(node.get("items"), list) else [])
        key = "prefixItems" if "prefixItems" in node else "items"
        known = [self._child(f"{key}/{i}") for i in range(min(count, len(fixed)))]
        rest_key = "additionalItems" if isinstance(node.get("items"), list) else "items"
        rest = self._child(rest_key) if rest_key in node else 1.0
        beyond = count - len(known)
        return 2.0 + sum(known) + (beyond * rest if beyond else 0.0) + max(count - 1, 0)

    def _object(self, node: dict[str, Any]) -> float:
        total = 2.0
        for name in dict.fromkeys(node.get("required", ())):
            if name in node.get("properties", {}):
                value = self._child(f"properties/{name.replace('~', '~0').replace('/', '~1')}")
            elif "additionalProperties" in node and not node.get("patternProperties"):
                value = self._child("additionalProperties")
            else:
                value = 1.0
            total += len(name) + 4 + value
        return total

    def _child(self, key: str) -> float:
        return self._sizes[f"{self._path}/{key}"]


def _length(value: Any) -> float:
    return float(len(orjson.dumps(value)))

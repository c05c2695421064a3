"""Finding the part of a schema that an engine refuses, when its message does not say where.

Tries the parts one by one, inner ones first, within a bound on time. Runs in the compile process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.scheduler.grammar.json_grammar import schema_grammar
from services.scheduler.grammar.llguidance_backend import Engine
from services.scheduler.grammar.schema_check import check_schema, parse_schema, ref_target, subschemas
from shared.errors import InvalidRequest
from shared.grammar import GrammarSpec

MOST_SECONDS = 0.5
_SHARED = ("$defs", "definitions")


@contextmanager
def with_place(spec: GrammarSpec, engine: Engine) -> Iterator[None]:
    """Add the pointer of the offending part to an error about a JSON schema."""
    try:
        yield
    except InvalidRequest as fault:
        path = _place(spec, engine) if spec.kind == "json_schema" else None
        if path is None:
            raise
        text = fault.message.removeprefix("json_schema: ")
        raise InvalidRequest(f"json_schema at {path or '/'}: {text}", param="json_schema") from fault


def _place(spec: GrammarSpec, engine: Engine) -> str | None:
    root = check_schema(parse_schema(spec.source))
    if isinstance(root, bool):
        return None
    shared = {key: root[key] for key in _SHARED if key in root}
    until = time.monotonic() + MOST_SECONDS
    for path, node in subschemas(root):
        if time.monotonic() > until:
            return None
        if isinstance(node, bool) or not _stands_alone(node):
            continue
        try:
            engine.build(schema_grammar({**node, **shared}, spec.max_whitespace), "json_schema")
        except InvalidRequest:
            return path
    return None


def _stands_alone(node: dict[str, object]) -> bool:
    """Whether a part refers to shared definitions only, so that it may be tried without the rest."""
    targets = [ref_target(part) for _, part in subschemas(node) if isinstance(part, dict)]
    return all(t is None or t.startswith(("/$defs/", "/definitions/")) for t in targets)

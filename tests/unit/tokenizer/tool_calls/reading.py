"""Texts read by a scanner, in one piece or in many, and summed up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.tokenizer.tool_calls.call_scanner import CallScanner
from services.tokenizer.tool_calls.events import CallStart
from services.tokenizer.tool_calls.formats import CallFormat

PROPERTIES = {
    "a": {"type": "integer"}, "b": {"type": "array"}, "s": {"type": "string"}, "flag": {"anyOf": [{"type": "boolean"}]},
    "ref": {"$ref": "#/$defs/x"}, "size": {"enum": [1, 2, "x"]}, "half": {"type": ["number", "null"]},
}  # fmt: skip
FUNCTIONS: dict[str, dict[str, Any]] = {"get_weather": {}, "add": {"properties": PROPERTIES}, "f": {"properties": []}}
Read = tuple[str, list[tuple[str, str]]]
"""Content, and (name, arguments) of each call."""


def read(form: CallFormat, pieces: Iterable[str], *, only_one: bool = False) -> Read:
    """What the pieces add up to."""
    scanner = CallScanner(form.syntax, FUNCTIONS, only_one=only_one)
    events = [event for piece in pieces for event in scanner.add(piece)] + scanner.finish()
    content, calls = "", []
    for event in events:
        if isinstance(event, str):
            content += event
        elif isinstance(event, CallStart):
            calls.append((event.name, ""))
        else:
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return content, calls

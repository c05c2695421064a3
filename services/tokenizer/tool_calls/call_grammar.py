"""Grammars that make a model call: formats of xgrammar's structural tags, as plain JSON values.

Source: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.tokenizer.tool_calls.formats import Frame
from shared.errors import InvalidRequest

Format = dict[str, Any]
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a request."""

    name: str
    parameters: dict[str, Any]
    """JSON schema of its arguments: an object."""
    strict: bool | None

    @property
    def schema(self) -> dict[str, Any]:
        """What arguments of a forced call fit."""
        return {"type": "object"} if self.strict is False else self.parameters


def functions_of(tools: Sequence[dict[str, Any]]) -> list[Function]:
    """The tools of a request.

    Raises:
        InvalidRequest: one is no function, or its parameters are no schema of an object.
    """
    return [_function(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def _function(tool: dict[str, Any], path: str) -> Function:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise InvalidRequest(f"{path} must be of type 'function' and have a 'function'", param=path)
    name, parameters, strict = function.get("name"), function.get("parameters"), function.get("strict")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{path}.function.name must be a string", param=f"{path}.function.name")
    if parameters is None:
        parameters = NO_ARGUMENTS
    kind = parameters.get("type", "object") if isinstance(parameters, dict) else None
    if kind != "object":
        where = f"{path}.function.parameters"
        raise InvalidRequest(f"{where} must be a JSON schema of type 'object', got {kind!r}", param=where)
    return Function(name, {"type": "object", **parameters}, None if strict is None else bool(strict))


def forced_calls(
    frame: Frame, functions: Sequence[Function], *, given: str, only_one: bool, max_whitespace: int
) -> Format:
    """Calls and nothing else, at least one.

    Args:
        given: the beginning that the prompt has already.
        max_whitespace: between two tokens of JSON.
    """
    before, head = frame.before, frame.head[0]
    assert (before or head).startswith(given), "the marker begins what is forced"
    if before:
        before = before[len(given) :]
        given = ""
    tags = [_call(frame, head, function, max_whitespace) for function in functions]
    first = [_call(frame, head[len(given) :], function, max_whitespace) for function in functions] if given else tags
    if only_one:
        calls = either(first)
    elif given:
        more = _sequence(_constant(frame.between), either(tags))
        calls = _sequence(either(first), {"type": "star", "content": more})
    else:
        calls = {"type": "tags_with_separator", "tags": tags, "separator": frame.between, "at_least_one": True}
    return _sequence(_constant(before), calls, _constant(frame.after))


def possible_calls(
    frame: Frame, marker: str, functions: Sequence[Function], *, only_one: bool, max_whitespace: int
) -> Format:
    """Any text, in which what begins as a call is one.

    Args:
        marker: what announces calls; "" where they begin with their own text.
    """
    trigger = marker or frame.head[0]
    if frame.before:
        inside = dataclasses.replace(frame, before="", after="")
        calls = forced_calls(inside, functions, given="", only_one=only_one, max_whitespace=max_whitespace)
        tags = [{"type": "tag", "begin": frame.before, "content": calls, "end": frame.after}]
    else:
        tags = [_call(frame, frame.head[0], function, max_whitespace) for function in functions]
    return {"type": "triggered_tags", "triggers": [trigger], "tags": tags, "stop_after_first": only_one}


def _call(frame: Frame, head: str, function: Function, max_whitespace: int) -> Format:
    arguments = json_schema(function.schema, max_whitespace)
    if frame.style != "json":
        arguments["style"] = frame.style
    return {"type": "tag", "begin": head + function.name + frame.head[1], "content": arguments, "end": frame.tail}


def json_schema(schema: dict[str, Any], max_whitespace: int) -> Format:
    """JSON that fits a schema. Structural tags have no JSON without any white space: one character is the least."""
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": max(1, max_whitespace)}


def either(formats: list[Format]) -> Format:
    """One of several."""
    return formats[0] if len(formats) == 1 else {"type": "or", "elements": formats}


def _constant(text: str) -> Format | None:
    return {"type": "const_string", "value": text} if text else None


def _sequence(*formats: Format | None) -> Format:
    there = [f for f in formats if f is not None]
    return there[0] if len(there) == 1 else {"type": "sequence", "elements": there}

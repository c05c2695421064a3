"""Grammars that make a model call: formats of xgrammar's structural tags, as plain JSON values.

Source: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.tokenizer.tool_calls.argument_grammar import (
    Format,
    constant,
    either,
    json_schema,
    keyword_arguments,
    tagged_arguments,
)
from services.tokenizer.tool_calls.formats import Frame
from shared.errors import InvalidRequest

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


def forced_calls(frame: Frame, functions: Sequence[Function], *, only_one: bool) -> Format:
    """Calls and nothing else, at least one."""
    tags = [_call(frame, function) for function in functions]
    if only_one:
        calls = either(tags)
    else:
        calls = {"type": "tags_with_separator", "tags": tags, "separator": frame.between, "at_least_one": True}
    parts = [_constant(frame.before), calls, _constant(frame.after)]
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else {"type": "sequence", "elements": there}


def possible_calls(frame: Frame, marker: str, functions: Sequence[Function], *, only_one: bool) -> Format:
    """Any text, in which what begins as a call is one.

    Args:
        marker: what announces calls; "" where they begin with their own text.
    """
    trigger = marker or frame.head[0]
    if frame.before:
        calls = forced_calls(dataclasses.replace(frame, before="", after=""), functions, only_one=only_one)
        tags = [{"type": "tag", "begin": frame.before, "content": calls, "end": frame.after}]
    else:
        tags = [_call(frame, function) for function in functions]
    return {"type": "triggered_tags", "triggers": [trigger], "tags": tags, "stop_after_first": only_one}


def _call(frame: Frame, function: Function) -> Format:
    begin = frame.head[0] + function.name + frame.head[1]
    match frame.arguments:
        case "json":
            content = json_schema(function.schema)
        case "tags":
            content = tagged_arguments(function.parameters, strict=function.strict is not False)
        case "keywords":
            content = keyword_arguments(function.parameters, strict=function.strict is not False)
    return {"type": "tag", "begin": begin, "content": content, "end": frame.tail}


def _constant(text: str) -> Format | None:
    return constant(text) if text else None

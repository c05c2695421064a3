"""Grammars of arguments that are not one JSON object: a tag for each (Qwen3-Coder), or Python's keywords.

Arguments come in the order of the schema. Values are JSON, which Python's reader takes too; text in tags stands as
it is.
"""

from __future__ import annotations

import keyword
from typing import Any

from services.tokenizer.tool_calls.xml_call import PARAMETER, VALUE_END, types_of
from shared.errors import InvalidRequest

Format = dict[str, Any]
_NOT_OF_TEXT = ("pattern", "format", "minLength")
"""What can be asked of JSON and not of bare text."""


def json_schema(schema: Any) -> Format:
    """JSON that fits a schema, with as much white space as the `GrammarSpec` says."""
    return {"type": "json_schema", "json_schema": schema}


def constant(text: str) -> Format:
    """This text, which is not empty."""
    return {"type": "const_string", "value": text}


def either(formats: list[Format]) -> Format:
    """One of several."""
    return formats[0] if len(formats) == 1 else {"type": "or", "elements": formats}


def tagged_arguments(parameters: dict[str, Any], *, strict: bool) -> Format:
    """
    Args:
        strict: values fit their schemas, and what is required is there.

    Raises:
        InvalidRequest: a text has a schema that bare text cannot be held to.
    """
    needed = _required(parameters) if strict else ()
    parts: list[Format] = [constant("\n")]
    for name, schema in _properties(parameters):
        begin = f"{PARAMETER}{name}>\n"
        content = _text(name, schema) if strict else {"type": "any_text"}
        if content is None:
            tag = {"type": "tag", "begin": begin, "content": json_schema(schema), "end": "\n" + VALUE_END}
        else:
            tag = {"type": "tag", "begin": begin, "content": content, "end": VALUE_END}
        argument = _sequence([tag, constant("\n")])
        parts.append(argument if name in needed else {"type": "optional", "content": argument})
    return _sequence(parts)


def keyword_arguments(parameters: dict[str, Any], *, strict: bool) -> Format:
    """With the parentheses. See `tagged_arguments`.

    Raises:
        InvalidRequest: an argument's name is no name in Python.
    """
    needed = _required(parameters) if strict else ()
    members = [
        (_sequence([constant(f"{_python_name(name)}="), json_schema(schema if strict else True)]), name in needed)
        for name, schema in _properties(parameters)
    ]
    ways: list[Format] = []
    for i, (first, must) in enumerate(members):
        others = [(_sequence([constant(", "), member]), required) for member, required in members[i + 1 :]]
        rest = [part if required else {"type": "optional", "content": part} for part, required in others]
        ways.append(_sequence([first, *rest]))
        if must:
            break
    else:
        ways = [{"type": "optional", "content": either(ways)}] if ways else []
    return _sequence([constant("("), *([either(ways)] if ways else []), constant(")")])


def _properties(parameters: dict[str, Any]) -> list[tuple[str, Any]]:
    """Names and schemas, each with the definitions that it may refer to."""
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    properties = parameters.get("properties", {})
    if not isinstance(properties, dict):
        raise InvalidRequest("properties of a function's parameters must be an object of schemas", param="tools")
    return [(name, {**schema, **shared} if isinstance(schema, dict) else schema) for name, schema in properties.items()]


def _required(parameters: dict[str, Any]) -> list[Any]:
    required = parameters.get("required", [])
    if not isinstance(required, list):
        raise InvalidRequest("required of a function's parameters must be a list of names", param="tools")
    return required


def _text(name: str, schema: Any) -> Format | None:
    """A value that is written as bare text; None where it is JSON."""
    if not isinstance(schema, dict):
        return {"type": "any_text"}
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    if isinstance(values, list) and values and all(isinstance(value, str) and value for value in values):
        return either([constant(f"{value}\n") for value in values])
    types = types_of(schema)
    if types and "string" not in types:
        return None
    for word in _NOT_OF_TEXT:
        if word in schema:
            raise InvalidRequest(
                f"argument {name!r}: {word} cannot be held in this model's format of calls, where text is not quoted: "
                "leave it out, or set strict to false",
                param="tools",
            )
    most = schema.get("maxLength")
    return {"type": "any_text", "max_chars": most + 1} if isinstance(most, int) else {"type": "any_text"}


def _python_name(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidRequest(f"argument {name!r} is no name in Python, in which this model writes calls", param="tools")
    return name


def _sequence(parts: list[Format]) -> Format:
    return parts[0] if len(parts) == 1 else {"type": "sequence", "elements": parts}

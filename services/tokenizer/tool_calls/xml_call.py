"""A call as Qwen3-Coder writes it: `<function=f><parameter=a>text</parameter></function>`.

The format has no types: a value is text unless the function's schema says that it is something else.
"""

from __future__ import annotations

from typing import Any, Literal

import orjson

from services.tokenizer.tool_calls.events import CallArguments, CallStart, Event, Functions
from services.tokenizer.tool_calls.streamed_call import StreamedCall

OPEN, PARAMETER, VALUE_END, CLOSE = "<function=", "<parameter=", "</parameter>", "</function>"
WHITESPACE = " \t\r\n"
_TYPES: dict[type, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null",
}  # fmt: skip


class XmlCall(StreamedCall):
    """Arguments are given one by one, as JSON."""

    def __init__(self, functions: Functions) -> None:
        super().__init__(functions)
        self._state: Literal["open", "name", "body", "key", "value"] = "open"
        self._word = ""  # the marker, name or value that is being read
        self._name = self._key = ""
        self._count = 0  # arguments so far

    def _step(self, text: str, at: int, out: list[Event]) -> int:
        char = text[at]
        match self._state:
            case "open":
                return self._marker(char, at, (OPEN,), out)
            case "body":
                if char in WHITESPACE and not self._word:
                    return at + 1
                return self._marker(char, at, (PARAMETER, CLOSE), out)
            case "value":
                return self._value(text, at, out)
            case "name" | "key":
                end = text.find(">", at)
                self._word += text[at : end if end >= 0 else len(text)]
                if end < 0:
                    return len(text)
                self._take_word(out)
                return end + 1

    def _marker(self, char: str, at: int, allowed: tuple[str, ...], out: list[Event]) -> int:
        """One more character of one of the markers."""
        word = self._word + char
        if not any(marker.startswith(word) for marker in allowed):
            self.failed = True
            return at
        self._word = "" if word in allowed else word
        if word == OPEN:
            self._state = "name"
        elif word == PARAMETER:
            self._state = "key"
        elif word == CLOSE:
            out.append(CallArguments("}" if self._count else "{}"))
            self.done = True
        return at + 1

    def _take_word(self, out: list[Event]) -> None:
        word, self._word = self._word.strip(WHITESPACE), ""
        if self._state == "key":
            self._key, self._state = word, "value"
        elif word in self._functions:
            self._name, self._state, self.started, self.raw = word, "body", True, ""
            out.append(CallStart(word))
        else:
            self.failed = True

    def _value(self, text: str, at: int, out: list[Event]) -> int:
        before = len(self._word)
        self._word += text[at:]
        end = self._word.find(VALUE_END, max(0, before - len(VALUE_END)))
        if end < 0:
            return len(text)
        value = self._word[:end].removeprefix("\n").removesuffix("\n")
        start = ", " if self._count else "{"
        out.append(CallArguments(f"{start}{_dumped(self._key)}: {self._json(value)}"))
        self._word, self._state = "", "body"
        self._count += 1
        return at + end + len(VALUE_END) - before

    def _json(self, text: str) -> str:
        """A value as JSON of the type that the schema wants; text where it is of no such type."""
        types = _types(self._functions[self._name].get("properties", {}), self._key)
        if types and types != {"string"}:
            try:
                value = orjson.loads(text.lower() if text in ("True", "False") else text)
            except orjson.JSONDecodeError:
                return _dumped(text)
            if _TYPES[type(value)] in types or (type(value) is int and "number" in types):
                return _dumped(value)
        return _dumped(text)


def _types(properties: Any, key: str) -> set[str]:
    """Types that the schema of a property allows; none when it does not say."""
    schema = properties.get(key) if isinstance(properties, dict) else None
    return types_of(schema) if isinstance(schema, dict) else set()


def types_of(schema: dict[str, Any]) -> set[str]:
    """Types that a schema allows, as far as it says; a reference may be any structure."""
    kinds = schema.get("type", [])
    found = {kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)}
    if "$ref" in schema:
        found |= {"object", "array"}  # a shared definition is a structure, or an enumeration of strings
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if not found and isinstance(values, list):
        found |= {_TYPES[type(value)] for value in values if type(value) in _TYPES}
    for word in ("anyOf", "oneOf"):
        branches = schema.get(word)
        for branch in branches if isinstance(branches, list) else ():
            found |= types_of(branch) if isinstance(branch, dict) else set()
    return found


def _dumped(value: Any) -> str:
    return orjson.dumps(value).decode()

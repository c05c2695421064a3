"""A call as a JSON object: {"name": "f", "arguments": {...}}, or `parameters` in place of `arguments`."""

from __future__ import annotations

from typing import Any, Literal

import orjson

from services.tokenizer.tool_calls.events import CallArguments, CallStart, Event, Functions
from services.tokenizer.tool_calls.json_span import JsonSpan
from services.tokenizer.tool_calls.streamed_call import StreamedCall

ARGUMENTS = ("arguments", "parameters")
FIRST_KEYS = frozenset({"name", "type", "id", *ARGUMENTS})
"""An object that begins with another key is no call: it need not be held back any longer."""
WHITESPACE = " \t\r\n"
_State = Literal["open", "key or close", "key", "colon", "value", "in value", "comma or close"]


class JsonCall(StreamedCall):
    """Arguments are given as they come, once the name is known. Other keys are skipped."""

    def __init__(self, functions: Functions) -> None:
        super().__init__(functions)
        self._state: _State = "open"
        self._span = JsonSpan()
        self._lexeme = ""  # the key or value that is being read
        self._keys: set[str] = set()
        self._key = ""
        self._name: str | None = None
        self._arguments = ""  # that came before the name

    def _step(self, text: str, at: int, out: list[Event]) -> int:
        """One character of punctuation, or as much of a key or value as there is."""
        if self._state in ("key", "in value"):
            return self._lexeme_step(text, at, out)
        char = text[at]
        if char in WHITESPACE:
            return at + 1
        match self._state, char:
            case "open", "{":
                self._state = "key or close"
            case ("key or close", "}") | ("comma or close", "}"):
                self._close(out)
                return at if self.failed else at + 1
            case "key or close", '"':
                self._state, self._span, self._lexeme = "key", JsonSpan(), ""
                return at
            case "colon", ":":
                self._state = "value"
            case "comma or close", ",":
                self._state = "key or close"
            case "value", _ if char not in ",:]}":
                self._state, self._span, self._lexeme = "in value", JsonSpan(), ""
                if self._key in ARGUMENTS and char == "{" and self._name is not None:
                    self._start(out)
                return at
            case _:
                self.failed = True
                return at
        return at + 1

    def _lexeme_step(self, text: str, at: int, out: list[Event]) -> int:
        end = self._span.feed(text, at)
        if self.started and self._key in ARGUMENTS and self._state == "in value":
            if end > at:
                out.append(CallArguments(text[at:end]))
        else:
            self._lexeme += text[at:end]
        if self._span.failed:
            self.failed = True
        elif self._span.ended:
            if self._state == "key":
                self._take_key()
            else:
                self._take_value(out)
        return end

    def _take_key(self) -> None:
        key = _loaded(self._lexeme)
        if not isinstance(key, str) or key in self._keys or (not self._keys and key not in FIRST_KEYS):
            self.failed = True
            return
        if key in ARGUMENTS and not self._keys.isdisjoint(ARGUMENTS):
            self.failed = True
            return
        self._keys.add(key)
        self._key, self._state = key, "colon"

    def _take_value(self, out: list[Event]) -> None:
        self._state = "comma or close"
        if self.started and self._key in ARGUMENTS:
            return  # given as they came
        if not self._lexeme:
            self.failed = True
        elif self._key == "name":
            name = _loaded(self._lexeme)
            if not isinstance(name, str) or name not in self._functions:
                self.failed = True
                return
            self._name = name
            if self._arguments:
                self._start(out)
        elif self._key in ARGUMENTS:
            self._arguments = self._lexeme if self._lexeme[0] == "{" else _other_arguments(self._lexeme)
            if not self._arguments:
                self.failed = True
            elif self._name is not None:
                self._start(out)

    def _close(self, out: list[Event]) -> None:
        if self._name is None:
            self.failed = True
            return
        if not self.started:
            self._arguments = "{}"
            self._start(out)
        self.done = True

    def _start(self, out: list[Event]) -> None:
        assert self._name is not None, "a call starts when its name is known"
        self.started, self.raw = True, ""
        out.append(CallStart(self._name))
        if self._arguments:
            out.append(CallArguments(self._arguments))


def _other_arguments(lexeme: str) -> str:
    """Arguments that are not an object: none at all, or an object as a string. Empty when they are neither."""
    value = _loaded(lexeme)
    if value is None and lexeme == "null":
        return "{}"
    return value if isinstance(value, str) and isinstance(_loaded(value), dict) else ""


def _loaded(text: str) -> Any:
    """The JSON value of a text; None when it is not JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None

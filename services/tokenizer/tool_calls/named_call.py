"""Mistral's newer form of a call: `name[ARGS]{...}`, `name[CALL_ID]id[ARGS]{...}` or `name{...}`."""

from __future__ import annotations

import re
from typing import Literal

from services.tokenizer.tool_calls.events import CallArguments, CallStart, Event, Functions
from services.tokenizer.tool_calls.json_call import WHITESPACE
from services.tokenizer.tool_calls.json_span import JsonSpan
from services.tokenizer.tool_calls.streamed_call import StreamedCall

ARGS, CALL_ID = "[ARGS]", "[CALL_ID]"
_NO_NAME = re.compile(r"[^\w.:-]", re.ASCII)


class NamedCall(StreamedCall):
    """Arguments are given as they come."""

    def __init__(self, functions: Functions) -> None:
        super().__init__(functions)
        self._state: Literal["name", "mark", "id", "arguments"] = "name"
        self._name = self._mark = ""
        self._span = JsonSpan()

    def _step(self, text: str, at: int, out: list[Event]) -> int:
        if self.started:
            return self._arguments(text, at, out)
        char = text[at]
        if self._state == "name":
            match = _NO_NAME.search(text, at)
            end = match.start() if match else len(text)
            self._name += text[at:end]
            if match:
                self.failed = self._name not in self._functions
                self._state = "mark"
            return end
        if self._state == "id" and not self._mark and char != "[":
            return at + 1
        if char == "{" and not self._mark:
            self._start(out)
            return at
        if char in WHITESPACE and not self._mark and self._state != "id":
            return at + 1
        return self._marker(char, at)

    def _marker(self, char: str, at: int) -> int:
        """One more character of [CALL_ID] or [ARGS]."""
        mark = self._mark + char
        allowed = {"mark": (ARGS, CALL_ID), "id": (ARGS,)}.get(self._state, ())
        if mark in allowed:
            self._state, self._mark = ("id" if mark == CALL_ID else "arguments"), ""
        elif any(m.startswith(mark) for m in allowed):
            self._mark = mark
        else:
            self.failed = True
            return at
        return at + 1

    def _start(self, out: list[Event]) -> None:
        self.started, self.raw = True, ""
        out.append(CallStart(self._name))

    def _arguments(self, text: str, at: int, out: list[Event]) -> int:
        end = self._span.feed(text, at)
        if end > at:
            out.append(CallArguments(text[at:end]))
        self.done, self.failed = self._span.ended, self._span.failed
        return end

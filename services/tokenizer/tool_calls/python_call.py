"""A call as Python writes it: `name(a=1, b="x")`. Only keywords with literal values are arguments."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

import orjson

from services.tokenizer.tool_calls.events import CallArguments, CallStart, Event, Functions

_NO_NAME = re.compile(r"[^\w.:-]", re.ASCII)
_MARK = re.compile(r"[\"'()\[\]{}]")
_CLOSER = {"(": ")", "[": "]", "{": "}"}
MAX_CHARS = 64 * 1024
"""Of one call; Python's parser gets nothing longer."""


class PythonCall:
    """Given as a whole when its parenthesis closes: its arguments are rewritten as JSON."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self.done = self.failed = self.started = False
        self.raw = ""
        self._name = ""
        self._closers: list[str] = []
        self._quote = ""
        self._escaped = False

    def feed(self, text: str, at: int, out: list[Event]) -> int:
        text = text[: at + MAX_CHARS + 1 - len(self.raw)]
        while at < len(text) and not (self.done or self.failed):
            after = self._quoted(text, at) if self._quote else self._step(text, at)
            self.raw += text[at:after]
            at = after
            if len(self.raw) > MAX_CHARS:
                self.failed = True
            elif self._closers == [""]:
                self._finish(out)
        return at

    def _step(self, text: str, at: int) -> int:
        if not self._closers:
            match = _NO_NAME.search(text, at)
            end = match.start() if match else len(text)
            self._name += text[at:end]
            if end > at or not match:
                return end
            self.failed = match[0] != "(" or self._name not in self._functions
            self._closers = ["", ")"]
            return at if self.failed else at + 1
        match = _MARK.search(text, at)
        if match is None:
            return len(text)
        char = match[0]
        if char in "\"'":
            self._quote = char
        elif char in _CLOSER:
            self._closers.append(_CLOSER[char])
        elif char == self._closers[-1]:
            self._closers.pop()
        else:
            self.failed = True
            return match.start()
        return match.end()

    def _quoted(self, text: str, at: int) -> int:
        while at < len(text):
            char = text[at]
            at += 1
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == self._quote:
                self._quote = ""
                break
        return at

    def _finish(self, out: list[Event]) -> None:
        arguments = _keywords(self.raw[len(self._name) :])
        if arguments is None:
            self.failed = True
            return
        self.done = self.started = True
        self.raw = ""
        out += [CallStart(self._name), CallArguments(arguments)]


def _keywords(parentheses: str) -> str | None:
    """JSON of the keyword arguments; None when there are others, or values that are no literals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            call = ast.parse("f" + parentheses, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            return None
        values: dict[str, Any] = {str(k.arg): _literal(k.value) for k in call.keywords}
        return orjson.dumps(values).decode()
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None  # orjson's refusals are TypeErrors


def _literal(node: ast.expr) -> Any:
    """Python's literals, and JSON's words for three of them."""
    words = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in words:
        return words[node.id]
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {str(ast.literal_eval(k)): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k}
    return ast.literal_eval(node)

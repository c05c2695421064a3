"""Where a JSON value ends, found by its brackets and quotes. Does not check what is between them."""

from __future__ import annotations

import re

_BRACKET = re.compile(r'["\[\]{}]')
_QUOTE = re.compile(r'["\\]')
_AFTER_LITERAL = re.compile(r"[^\w.+-]")
_CLOSER = {"{": "}", "[": "]"}


class JsonSpan:
    """One value, read a piece at a time. A number or word ends before the first character that is no part of it."""

    __slots__ = ("_closers", "_escaped", "_in_string", "_started", "ended", "failed")

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._in_string = self._escaped = self._started = False
        self.ended = False
        self.failed = False
        """A bracket closes what it did not open."""

    def feed(self, text: str, at: int) -> int:
        """Position behind what belongs to the value; the end of the text while it goes on."""
        while at < len(text) and not (self.ended or self.failed):
            if self._in_string:
                at = self._string(text, at)
            elif self._started and self._closers:
                at = self._nested(text, at)
            else:
                at = self._first(text, at)
        return at

    def _first(self, text: str, at: int) -> int:
        """Brackets and strings open here; a literal is taken as far as it goes, perhaps over several pieces."""
        char = text[at]
        if not self._started and char in _CLOSER:
            self._closers.append(_CLOSER[char])
        elif not self._started and char == '"':
            self._in_string = True
        else:
            match = _AFTER_LITERAL.search(text, at)
            self._started = True
            self.ended = match is not None
            return match.start() if match else len(text)
        self._started = True
        return at + 1

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        match = _QUOTE.search(text, at)
        if match is None:
            return len(text)
        if match[0] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.ended = not self._closers
        return match.end()

    def _nested(self, text: str, at: int) -> int:
        match = _BRACKET.search(text, at)
        if match is None:
            return len(text)
        char = match[0]
        if char == '"':
            self._in_string = True
        elif char in _CLOSER:
            self._closers.append(_CLOSER[char])
        elif char == self._closers[-1]:
            self._closers.pop()
            self.ended = not self._closers
        else:
            self.failed = True
            return match.start()
        return match.end()

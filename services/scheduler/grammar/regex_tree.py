r"""Regular expressions as trees of bytes: the plain part of the syntax, of which an automaton can be made.

What is not plain (anchors, look-around, flags, lazy repetition, named groups, properties, operations on classes) is not
read at all, since the one reader of this, `automaton`, is an optimisation. Classes are exact for ASCII; for other
characters a class is only known to match none, some or all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

MOST_DEPTH = 50
ASCII = (1 << 128) - 1
_COUNT = re.compile(r"\{(\d{1,5})(,(\d{0,5}))?\}")
_CODE = re.compile(r"x\{([0-9A-Fa-f]{1,6})\}|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")
_CONTROL = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}


class Beyond(Enum):
    """Which characters beyond ASCII match."""

    NONE = 0
    SOME = 1
    """Not known which."""
    ALL = 2


@dataclass(frozen=True, slots=True)
class Symbol:
    """One byte out of several, or a character beyond ASCII."""

    bytes: int
    """Bit b is 1 where byte b matches."""
    beyond: Beyond = Beyond.NONE


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly these bytes."""

    bytes: bytes


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    branches: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Tree
    least: int
    most: int | None
    """None = any number."""


Tree = Symbol | Literal | Sequence | Choice | Repeat
NOTHING = Sequence(())


class NotPlain(Exception):
    """The expression is wrong, or has something that is not read here."""


def parse(pattern: str) -> Tree:
    """
    Raises:
        NotPlain: see there.
    """
    reader = _Reader(pattern)
    tree = reader.choice(0)
    if reader.at < len(pattern):
        raise NotPlain("a parenthesis too many")
    return tree


def bits(*ranges: tuple[int, int]) -> int:
    """A `Symbol`'s bytes from ranges, both ends included."""
    return sum(((1 << (high - low + 1)) - 1) << low for low, high in ranges)


_DIGITS = bits((48, 57))
_CLASSES = {  # as in llguidance, with \d for 0 to 9 only
    "d": Symbol(_DIGITS),
    "w": Symbol(_DIGITS | bits((65, 90), (95, 95), (97, 122)), Beyond.SOME),
    "s": Symbol(bits((9, 13), (32, 32)), Beyond.SOME),
}


def _complement(symbol: Symbol) -> Symbol:
    return Symbol(ASCII & ~symbol.bytes, Beyond.ALL if symbol.beyond is Beyond.NONE else Beyond.SOME)


class _Reader:
    """Recursive descent, one method per level of the syntax."""

    def __init__(self, pattern: str) -> None:
        self.text, self.at = pattern, 0

    def choice(self, depth: int) -> Tree:
        if depth > MOST_DEPTH:
            raise NotPlain("too deep")
        branches = [self._sequence(depth)]
        while self._skip("|"):
            branches.append(self._sequence(depth))
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self, depth: int) -> Tree:
        parts: list[Tree] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated(self._atom(depth)))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self, atom: Tree) -> Tree:
        char = self.text[self.at : self.at + 1]
        if char and char in "*+?":
            self.at += 1
            atom = Repeat(atom, int(char == "+"), 1 if char == "?" else None)
        elif char == "{":
            count = _COUNT.match(self.text, self.at)
            if count is None:
                raise NotPlain("a brace that is no count")
            self.at = count.end()
            least = int(count[1])
            most = least if count[2] is None else int(count[3]) if count[3] else None
            if most is not None and most < least:
                raise NotPlain("a count that goes down")
            atom = Repeat(atom, least, most)
        else:
            return atom
        if self.text[self.at : self.at + 1] in tuple("*+?{"):  # lazy, or repeated twice
            raise NotPlain("a repetition of a repetition")
        return atom

    def _atom(self, depth: int) -> Tree:
        char = self._next()
        if char == "(":
            if self._skip("?") and not self._skip(":"):
                raise NotPlain("a special group")
            tree = self.choice(depth + 1)
            if not self._skip(")"):
                raise NotPlain("an open group")
            return tree
        if char == "[":
            return self._class()
        if char == ".":
            return Symbol(ASCII & ~(1 << 10), Beyond.ALL)
        if char == "\\":
            found = self._escape()
            return found if isinstance(found, Symbol) else Literal(found.encode())
        if char in "^$*+?{":
            raise NotPlain("an anchor, or a repetition of nothing")
        return Literal(char.encode())

    def _escape(self) -> str | Symbol:
        """What stands behind a backslash: one character, or a class."""
        if (code := _CODE.match(self.text, self.at)) is not None:
            self.at = code.end()
            value = int(next(group for group in code.groups() if group), 16)
            if value > 0x10FFFF or 0xD800 <= value < 0xE000:
                raise NotPlain("no character")
            return chr(value)
        char = self._next()
        if char in _CONTROL:
            return chr(_CONTROL[char])
        if char.lower() in _CLASSES:
            found = _CLASSES[char.lower()]
            return found if char.islower() else _complement(found)
        if char.isalnum() or not char.isascii():
            raise NotPlain("an unknown escape")
        return char

    def _class(self) -> Symbol:
        negated = self._skip("^")
        found, beyond, first = 0, Beyond.NONE, True
        while first or not self._skip("]"):
            first = False
            if self.text[self.at : self.at + 1] in ("[", "]") or self.text[self.at : self.at + 2] in ("&&", "--", "~~"):
                raise NotPlain("a class within a class")
            low = self._member()
            if isinstance(low, Symbol):
                found |= low.bytes
                beyond = low.beyond if beyond is Beyond.NONE else Beyond.SOME
                continue
            high = low
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                end = self._member()
                if isinstance(end, Symbol) or end < low:
                    raise NotPlain("a range without an end")
                high = end
            beyond = Beyond.SOME if high > "\x7f" else beyond
            if low <= "\x7f":
                found |= bits((ord(low), min(ord(high), 127)))
        symbol = Symbol(found, beyond)
        return _complement(symbol) if negated else symbol

    def _member(self) -> str | Symbol:
        char = self._next()
        return self._escape() if char == "\\" else char

    def _skip(self, text: str) -> bool:
        found = self.text.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _next(self) -> str:
        if self.at >= len(self.text):
            raise NotPlain("the end comes too soon")
        self.at += 1
        return self.text[self.at - 1]


def choice_of(texts: Iterable[str]) -> Choice:
    """One of several texts."""
    return Choice(tuple(Literal(text.encode()) for text in texts))

"""EBNF as SGLang and xgrammar write it (GBNF), parsed to a small tree.

`name ::= alternatives`, "literals", [classes], groups, `*`, `+`, `?`, `{m,n}`, `.` and # comments; `root` is the start.
Errors say the line. Knows no engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from shared.errors import InvalidRequest

MAX_DEPTH = 100
MAX_REPEAT = 1_000
MAX_CHAR = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint ranges of code points, both ends included."""


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class CharClass:
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Ref:
    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    least: int
    most: int | None


Node = Literal | CharClass | Ref | Sequence | Choice | Repeat
Rules = dict[str, Node]

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
      | (?P<rule>[A-Za-z_][\w.-]*\s*::=)
      | (?P<name>[A-Za-z_][\w.-]*)
      | (?P<text>"(?:\\.|[^"\\\n])*")
      | (?P<class>\[(?:\\.|[^\]\\\n])*\])
      | (?P<count>\{\s*\d{1,9}\s*(?:,\s*(?:\d{1,9})?\s*)?\})
      | (?P<sign>[|()*+?.])""",
    re.X | re.S,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([^\w\s]|[nrtfvba0e]))")
_ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "b": 8, "a": 7, "0": 0, "e": 27}


def parse_ebnf(text: str) -> Rules:
    """The rules by name, in the order written.

    Raises:
        InvalidRequest: naming the line and what is wrong there.
    """
    parser = _Parser(text)
    rules = parser.rules()
    if "root" not in rules:
        raise InvalidRequest("ebnf: there is no rule named root, where sentences start", param="ebnf")
    for name, line in parser.used:
        if name not in rules:
            raise InvalidRequest(f"ebnf line {line}: rule {name} is not defined", param="ebnf")
    return rules


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        self._at = 0
        self.used: list[tuple[str, int]] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            line = text.count("\n", 0, at) + 1 if found is None or found.lastgroup != "skip" else 0
            if found is None:
                _fail(line, f"cannot read {text[at : at + 20]!r}")
            if found.lastgroup != "skip":
                self._tokens.append((str(found.lastgroup), found[0], line))
            at = found.end()
        self._tokens.append(("end", "", text.count("\n") + 1))

    def rules(self) -> Rules:
        rules: Rules = {}
        while self._kind != "end":
            if self._kind != "rule":
                _fail(self._line, f"expected a rule (name ::= ...), found {self._text!r}")
            name, line = self._text[:-3].strip(), self._line
            if name in rules:
                _fail(line, f"rule {name} is defined twice")
            self._at += 1
            rules[name] = self._choice(0)
        return rules

    @property
    def _kind(self) -> str:
        return self._tokens[self._at][0]

    @property
    def _text(self) -> str:
        return self._tokens[self._at][1]

    @property
    def _line(self) -> int:
        return self._tokens[self._at][2]

    def _choice(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            _fail(self._line, f"groups nested deeper than {MAX_DEPTH}")
        branches = [self._sequence(depth)]
        while self._text == "|":
            self._at += 1
            branches.append(self._sequence(depth))
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self._kind in ("name", "text", "class") or self._text in ("(", "."):
            parts.append(self._repeated(self._atom(depth)))
        if self._kind not in ("rule", "end") and self._text not in ("|", ")"):
            _fail(self._line, f"{self._text!r} has nothing before it")
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _atom(self, depth: int) -> Node:
        kind, text, line = self._tokens[self._at]
        self._at += 1
        if kind == "name":
            self.used.append((text, line))
            return Ref(text, line)
        if kind == "text":
            return Literal("".join(map(chr, _characters(text[1:-1], line))))
        if kind == "class":
            return _char_class(text[1:-1], line)
        if text == ".":
            return CharClass(((0, 9), (11, MAX_CHAR)))
        inner = self._choice(depth + 1)
        if self._text != ")":
            _fail(line, "this ( is never closed")
        self._at += 1
        return inner

    def _repeated(self, node: Node) -> Node:
        while self._kind == "count" or self._text in ("*", "+", "?"):
            text, line = self._text, self._line
            self._at += 1
            if text in ("*", "+", "?"):
                least, most = (1 if text == "+" else 0), (1 if text == "?" else None)
            else:
                low, _, high = text[1:-1].partition(",")
                least, most = int(low), int(low) if "," not in text else int(high) if high.strip() else None
            if least > MAX_REPEAT or (most is not None and (most > MAX_REPEAT or most < least)):
                _fail(line, f"{text}: repetitions are at most {MAX_REPEAT:,}, and the first number is the smaller one")
            node = Repeat(node, least, most)
        return node


def _char_class(text: str, line: int) -> CharClass:
    negated = text.startswith("^")
    chars = list(_characters(text[negated:], line, dashes=True))
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < len(chars):
        if at + 2 < len(chars) and chars[at + 1] == -1:
            if _plain(chars[at]) > _plain(chars[at + 2]):
                _fail(line, f"[{text}]: the range ends before it starts")
            ranges.append((_plain(chars[at]), _plain(chars[at + 2])))
            at += 3
        else:
            ranges.append((_plain(chars[at]),) * 2)
            at += 1
    merged = merge(ranges)
    result = complement(merged) if negated else merged
    if not result:
        _fail(line, f"[{text}] contains no character")
    return CharClass(result)


def _plain(char: int) -> int:
    return ord("-") if char == -1 else char


def _characters(text: str, line: int, *, dashes: bool = False) -> list[int]:
    """Code points of a literal or class; with `dashes` an unescaped - is -1."""
    out: list[int] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char != "\\":
            out.append(-1 if dashes and char == "-" else ord(char))
            at += 1
            continue
        escape = _ESCAPE.match(text, at)
        if escape is None:
            _fail(line, f"unknown escape {text[at : at + 4]!r}")
        code = next((g for g in escape.groups()[:3] if g), None)
        value = int(code, 16) if code else _ESCAPES.get(escape[4], ord(escape[4]))
        if value > MAX_CHAR or 0xD800 <= value <= 0xDFFF:
            _fail(line, f"{escape[0]} is no character")
        out.append(value)
        at = escape.end()
    return out


def merge(ranges: list[tuple[int, int]]) -> Ranges:
    """Sorted and disjoint."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def complement(ranges: Ranges) -> Ranges:
    """All other characters."""
    out, at = [], 0
    for low, high in ranges:
        if low > at:
            out.append((at, low - 1))
        at = high + 1
    if at <= MAX_CHAR:
        out.append((at, MAX_CHAR))
    return tuple(out)


def _fail(line: int, text: str) -> NoReturn:
    raise InvalidRequest(f"ebnf line {line}: {text}", param="ebnf")

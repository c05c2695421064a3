"""Which runs of characters of a grammar may be lexemes of a greedy lexer without changing the language.

llguidance cuts text into lexemes and takes the longest match, while EBNF knows characters only. Single characters are
always safe; whole literals and classes in a loop are much faster. The analysis walks every set of terminals that can
be expected at one place (an over-approximation: it ignores the stack) and every text that they share. Where a terminal
could end although another one could go on, and the next character allows both, the one that goes on is taken apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.scheduler.grammar.ebnf_parse import CharClass, Choice, Literal, Node, Ranges, Ref, Repeat, Rules, Sequence

MAX_STATES = 3_000
Terminal = Literal | CharClass | Repeat
"""A Repeat here is a class in a loop."""


@dataclass(eq=False, slots=True)
class _Position:
    """One occurrence of a terminal in the text of the grammar."""

    terminal: Terminal
    follow: set[int] = field(default_factory=set)


def loops_over_class(node: Node) -> bool:
    """Whether a node is a class repeated without a bound."""
    return isinstance(node, Repeat) and isinstance(node.part, CharClass) and node.most is None and node.least <= 1


def safe_terminals(rules: Rules) -> frozenset[Terminal]:
    """Literals of several characters and loops over a class that may be lexemes."""
    whole = {node for rule in rules.values() for node in _terminals(rule)}
    while whole:
        bad = _Analysis(rules, frozenset(whole)).conflicts()
        if not bad:
            break
        whole -= bad
    return frozenset(whole)


def _terminals(node: Node) -> Iterable[Terminal]:
    if (isinstance(node, Literal) and len(node.text) > 1) or loops_over_class(node):
        yield node  # type: ignore[misc]
    elif isinstance(node, Repeat):
        yield from _terminals(node.part)
    elif isinstance(node, Sequence | Choice):
        for part in node.parts if isinstance(node, Sequence) else node.branches:
            yield from _terminals(part)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a part of the grammar can start and end with."""

    nullable: bool
    first: frozenset[int]
    last: frozenset[int]


_NOTHING = _Shape(False, frozenset(), frozenset())


class _Analysis:
    """First, last and follow sets of all terminal positions, then the walk over expected sets."""

    def __init__(self, rules: Rules, whole: frozenset[Terminal]) -> None:
        self._whole = whole
        self._rules = rules
        self._positions: list[_Position] = []
        self._numbers: dict[tuple[str, tuple[int, ...]], int] = {}
        self._shapes: dict[str, _Shape] = dict.fromkeys(rules, _NOTHING)
        while True:
            before = dict(self._shapes), sum(len(p.follow) for p in self._positions)
            for name, node in rules.items():
                self._shapes[name] = self._shape(node, name, ())
            if before == (self._shapes, sum(len(p.follow) for p in self._positions)):
                break
        self._continuations = [_ranges(p.terminal) for p in self._positions]

    def _shape(self, node: Node, rule: str, path: tuple[int, ...]) -> _Shape:
        if isinstance(node, Ref):
            return self._shapes[node.name]
        if isinstance(node, CharClass) or node in self._whole:
            return self._leaf(node, rule, path)
        if isinstance(node, Literal):
            parts = [self._leaf(Literal(c), rule, (*path, i)) for i, c in enumerate(node.text)]
            return self._sequence(parts)
        if isinstance(node, Sequence):
            return self._sequence([self._shape(part, rule, (*path, i)) for i, part in enumerate(node.parts)])
        if isinstance(node, Choice):
            shapes = [self._shape(part, rule, (*path, i)) for i, part in enumerate(node.branches)]
            return _Shape(
                any(s.nullable for s in shapes), _union(s.first for s in shapes), _union(s.last for s in shapes)
            )
        assert isinstance(node, Repeat)
        inner = self._shape(node.part, rule, (*path, 0))
        if node.most != 1:
            self._link(inner.last, inner.first)
        return _Shape(inner.nullable or node.least == 0, inner.first, inner.last)

    def _leaf(self, terminal: Terminal, rule: str, path: tuple[int, ...]) -> _Shape:
        number = self._numbers.setdefault((rule, path), len(self._positions))
        if number == len(self._positions):
            self._positions.append(_Position(terminal))
        nullable = isinstance(terminal, Repeat) and terminal.least == 0
        return _Shape(nullable, frozenset((number,)), frozenset((number,)))

    def _sequence(self, shapes: list[_Shape]) -> _Shape:
        out = _Shape(True, frozenset(), frozenset())
        for shape in shapes:
            self._link(out.last, shape.first)
            first = out.first | shape.first if out.nullable else out.first
            last = out.last | shape.last if shape.nullable else shape.last
            out = _Shape(out.nullable and shape.nullable, first, last)
        return out

    def _link(self, ends: frozenset[int], starts: frozenset[int]) -> None:
        for end in ends:
            self._positions[end].follow |= starts

    def conflicts(self) -> set[Terminal]:
        """Terminals that a greedy lexer would run past the place where another one ends."""
        start = self._shapes["root"].first
        todo, seen = [start], {start}
        while todo:
            for ended in self._lex(todo.pop()):
                if isinstance(ended, set):
                    return ended
                following = _union(frozenset(self._positions[i].follow) for i in ended)
                if following and following not in seen:
                    seen.add(following)
                    todo.append(following)
                    if len(seen) > MAX_STATES:
                        return {*self._whole}
        return set()

    def _lex(self, expected: frozenset[int]) -> Iterable[frozenset[int] | set[Terminal]]:
        """Every set of positions that can end together; or, once, the terminals in conflict."""
        state = frozenset((i, 0) for i in expected)
        todo, seen = [state], {state}
        while todo:
            state = todo.pop()
            ends = frozenset(i for i, at in state if self._accepts(i, at))
            if ends:
                bad = {self._positions[i].terminal for i, at in state if self._runs_past(i, self._next(i, at), ends)}
                if bad:
                    yield bad & self._whole or {*self._whole}
                    return
                yield ends
            for char in _samples([self._next(i, at) for i, at in state]):
                after = frozenset((i, at + 1 if isinstance(self._positions[i].terminal, Literal) else 1)
                                  for i, at in state if _contains(self._next(i, at), char))  # fmt: skip
                if after and after not in seen:
                    seen.add(after)
                    todo.append(after)
                    if len(seen) > MAX_STATES:
                        yield {*self._whole}
                        return

    def _runs_past(self, position: int, onward: Ranges, ends: frozenset[int]) -> bool:
        """Whether a terminal can go on with a character that might as well start what follows one that ends.

        A loop that follows itself is no such case: two runs of a class are one run.
        """
        if not onward:
            return False
        looping = isinstance(self._positions[position].terminal, Repeat)
        return any(
            _meet(onward, self._next(j, 0))
            for i in ends
            for j in self._positions[i].follow
            if not (looping and i == j == position)
        )

    def _accepts(self, position: int, at: int) -> bool:
        terminal = self._positions[position].terminal
        return at == len(terminal.text) if isinstance(terminal, Literal) else at == 1

    def _next(self, position: int, at: int) -> Ranges:
        """Characters with which a terminal goes on."""
        terminal = self._positions[position].terminal
        if isinstance(terminal, Literal):
            return ((ord(terminal.text[at]),) * 2,) if at < len(terminal.text) else ()
        return () if at and isinstance(terminal, CharClass) else self._continuations[position]


def _ranges(terminal: Terminal) -> Ranges:
    if isinstance(terminal, CharClass):
        return terminal.ranges
    return terminal.part.ranges if isinstance(terminal, Repeat) and isinstance(terminal.part, CharClass) else ()


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*sets)


def _contains(ranges: Ranges, char: int) -> bool:
    return any(low <= char <= high for low, high in ranges)


def _meet(ranges: Ranges, others: Iterable[tuple[int, int]]) -> bool:
    return any(low <= high2 and low2 <= high for low2, high2 in others for low, high in ranges)


def _samples(classes: list[Ranges]) -> list[int]:
    """One character of every group that the classes do not tell apart."""
    cuts = sorted({edge for ranges in classes for low, high in ranges for edge in (low, high + 1)})
    return [cut for cut in cuts if any(_contains(ranges, cut) for ranges in classes)]

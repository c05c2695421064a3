"""The places of a regular grammar: two texts that lead to one place can go on in the same ways.

A byte automaton, of which states are made as texts reach them. It says nothing of what is allowed, that is the
library's; it tells when a mask that was worked out once holds again. So it may tell places apart that are the same, and
gives up (`UNKNOWN`) where it is not sure, but never takes different ones for one.

Positions and what may follow them: Glushkov 1961. Masks by the state of an automaton: Willard and Louf 2023 (Outlines).
"""

from __future__ import annotations

import functools
import operator
import threading
from dataclasses import dataclass

from services.scheduler.grammar.json_grammar import checked_schema
from services.scheduler.grammar.regex_tree import (
    Beyond,
    Choice,
    Literal,
    NotPlain,
    Repeat,
    Sequence,
    Symbol,
    Tree,
    choice_of,
    parse,
)
from services.scheduler.grammar.schema_check import parse_schema
from services.scheduler.grammar.schema_tree import schema_tree
from services.scheduler.grammar.sources import parse_choices
from shared.grammar import GrammarSpec

UNKNOWN, START = -1, 0
MOST_POSITIONS = 4096
MOST_WORK = 200_000
"""Set elements touched while an automaton is built, and again while it runs: some 20 ms and 10 MB at most."""


def automaton_of(spec: GrammarSpec) -> Automaton | None:
    """That of a plain regular expression, JSON Schema or list of texts, if it is not too large."""
    try:
        match spec.kind:
            case "regex":
                return Automaton(parse(spec.source))
            case "choice":
                return Automaton(choice_of(parse_choices(spec.source)))
            case "json_schema" if spec.max_whitespace == 0:
                return Automaton(schema_tree(checked_schema(parse_schema(spec.source))))
    except NotPlain:
        pass
    return None


@dataclass(slots=True)
class _Part:
    """A piece of the expression: positions that may begin and end it."""

    first: set[int]
    last: set[int]
    nullable: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """What may follow."""

    ahead: frozenset[int]
    """Positions that may be read next."""
    complete: bool
    """The text may end."""
    begun: bytes = b""
    """The first bytes of a character beyond ASCII, which is not read yet."""


class Automaton:
    """Shared by the requests of a grammar, also where one of them is followed in another thread."""

    def __init__(self, tree: Tree) -> None:
        """
        Raises:
            NotPlain: it would be too large.
        """
        self._symbols: list[Symbol] = []
        self._follow: list[set[int]] = []
        self._work = 0
        whole = self._add(tree)
        self._last = frozenset(whole.last)
        self._work = 0
        self._states: dict[_Place, int] = {}
        self._places: list[_Place] = []
        self._edges: list[dict[int, int]] = []
        self._branches: list[bool] = []
        self._making = threading.Lock()
        """Of new states and edges; those that are there are read without it."""
        self._state(_Place(frozenset(whole.first), whole.nullable))

    @property
    def num_states(self) -> int:
        return len(self._places)

    def walk(self, state: int, data: bytes) -> int:
        """Where `data` leads."""
        for byte in data:
            if state < 0:
                return UNKNOWN
            found = self._edges[state].get(byte)
            if found is None:
                with self._making:
                    found = self._edges[state][byte] = self._step(state, byte)
            state = found
        return state

    def branches(self, state: int) -> bool:
        """Whether no single byte is forced, for sure."""
        return self._branches[state]

    def _step(self, state: int, byte: int) -> int:
        ahead, begun = self._places[state].ahead, self._places[state].begun
        self._work += len(ahead)
        if self._work > MOST_WORK:
            return UNKNOWN
        if begun or (byte > 127 and any(self._symbols[at].beyond is not Beyond.NONE for at in ahead)):
            return self._step_beyond_ascii(ahead, begun + bytes((byte,)))
        return self._behind([at for at in ahead if self._symbols[at].bytes >> byte & 1])

    def _step_beyond_ascii(self, ahead: frozenset[int], begun: bytes) -> int:
        """A byte of a character that classes match: all of them, or it is not known what follows."""
        symbols = [self._symbols[at] for at in ahead]
        if any(symbol.beyond is Beyond.SOME or symbol.bytes >> 128 for symbol in symbols):
            return UNKNOWN
        if len(begun) < 2 + (begun[0] >= 0xE0) + (begun[0] >= 0xF0):
            return self._state(_Place(ahead, complete=False, begun=begun))
        return self._behind([at for at in ahead if self._symbols[at].beyond is Beyond.ALL])

    def _behind(self, read: list[int]) -> int:
        """The state after these positions were read together."""
        if not read:
            return UNKNOWN
        self._work += sum(len(self._follow[at]) for at in read)
        following = frozenset().union(*(self._follow[at] for at in read))
        return self._state(_Place(following, complete=not self._last.isdisjoint(read)))

    def _state(self, place: _Place) -> int:
        number = self._states.setdefault(place, len(self._places))
        if number == len(self._places):
            self._places.append(place)
            self._edges.append({})
            follow = functools.reduce(operator.or_, (self._symbols[at].bytes for at in place.ahead), 0)
            self._branches.append(bool(place.begun) or follow.bit_count() > 1)
        return number

    # ---- building

    def _add(self, tree: Tree) -> _Part:
        match tree:
            case Symbol():
                return self._symbol(tree)
            case Literal(data):
                part = _nothing()
                for byte in data:
                    part = self._join(part, self._symbol(Symbol(1 << byte)))
                return part
            case Sequence(parts):
                part = _nothing()
                for other in parts:
                    part = self._join(part, self._add(other))
                return part
            case Choice(branches):
                return self._either([self._add(branch) for branch in branches])
            case Repeat():
                return self._repeat(tree)

    def _symbol(self, symbol: Symbol) -> _Part:
        if len(self._symbols) >= MOST_POSITIONS:
            raise NotPlain("too many positions")
        number = len(self._symbols)
        self._symbols.append(symbol)
        self._follow.append(set())
        return _Part({number}, {number}, nullable=False)

    def _join(self, left: _Part, right: _Part) -> _Part:
        self._link(left.last, right.first)
        return _Part(
            left.first | right.first if left.nullable else left.first,
            left.last | right.last if right.nullable else right.last,
            left.nullable and right.nullable,
        )

    def _either(self, parts: list[_Part]) -> _Part:
        return _Part(
            set().union(*(part.first for part in parts)),
            set().union(*(part.last for part in parts)),
            any(part.nullable for part in parts),
        )

    def _repeat(self, tree: Repeat) -> _Part:
        """`x{2,4}` as `xx(x(x)?)?`, whose positions have few that follow them."""
        if tree.most is None:
            tail = self._add(tree.part)
            self._link(tail.last, tail.first)
            if tree.least == 0:
                tail.nullable = True
            count = tree.least - 1
        else:
            tail = _nothing()
            for _ in range(tree.most - tree.least):
                tail = self._join(self._add(tree.part), tail)
                tail.nullable = True
            count = tree.least
        for _ in range(count):
            tail = self._join(self._add(tree.part), tail)
        return tail

    def _link(self, ends: set[int], starts: set[int]) -> None:
        self._work += (len(ends) + 1) * (len(starts) + 1)
        if self._work > MOST_WORK:
            raise NotPlain("too many ways to go on")
        for end in ends:
            self._follow[end] |= starts


def _nothing() -> _Part:
    return _Part(set(), set(), nullable=True)

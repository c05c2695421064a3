"""A grammar that is a finite automaton over token ids: what it allows can be said without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from services.scheduler.grammar import GrammarOverrun


@dataclass(frozen=True)
class Automaton:
    """Compiled; states are numbers, 0 is the first."""

    edges: list[dict[int, int]]
    """Of each state: token to the next state."""
    accepting: frozenset[int]
    overrun_at: int = -1
    """State whose mask takes too long."""
    vocab_size: int = 1000
    slow: bool = False
    backend: str = "automaton"
    size_bytes: int = 0

    def start(self, stop_ids: frozenset[int]) -> AutomatonState:
        return AutomatonState(self, stop_ids)

    def accepts(self, tokens: Sequence[int], stop_ids: frozenset[int]) -> bool:
        """Whether a whole output is a sentence, ended by a stop token."""
        state = self.start(stop_ids)
        return all(state.accept(token) for token in tokens) and state.ended

    def expected(self, pick: list[int], stop_id: int) -> list[int]:
        """For tests of one way through: follow it with these choices where there are several."""
        state, out, choices = self.start(frozenset({stop_id})), [], iter(pick)
        while not state.ended:
            allowed = state.allowed()
            out.append(allowed[0] if len(allowed) == 1 else allowed[next(choices)])
            assert state.accept(out[-1])
        return out


@dataclass
class AutomatonState:
    """One request's place."""

    grammar: Automaton
    stop_ids: frozenset[int]
    path: list[int] = field(default_factory=lambda: [0])
    """States so far; -1 behind a stop token."""

    @property
    def slow(self) -> bool:
        return self.grammar.slow

    def allowed(self) -> list[int]:
        at = self.path[-1]
        stops = sorted(self.stop_ids) if at in self.grammar.accepting else []
        return sorted([*self.grammar.edges[at], *stops])

    def accept(self, token_id: int) -> bool:
        if self.ended or token_id not in self.allowed():
            return False
        self.path.append(self.grammar.edges[self.path[-1]].get(token_id, -1))
        return True

    def rollback(self, count: int) -> None:
        del self.path[len(self.path) - count :]

    def mask(self) -> bytes:
        if self.path[-1] == self.grammar.overrun_at or not self.allowed():
            raise GrammarOverrun("this state takes too long", param="regex")
        bits = np.zeros(-(-self.grammar.vocab_size // 32) * 32, np.uint8)
        bits[self.allowed()] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    @property
    def ended(self) -> bool:
        return self.path[-1] < 0

    @property
    def complete(self) -> bool:
        return self.path[-1] in self.grammar.accepting

    @property
    def exhausted(self) -> bool:
        return self.complete and not self.grammar.edges[self.path[-1]]

    def take_forced(self, context: Sequence[int], limit: int, before: frozenset[int] = frozenset()) -> list[int]:
        run: list[int] = []
        while len(run) < limit and len(self.allowed()) == 1 and not self.complete and self.allowed()[0] not in before:
            run.append(self.allowed()[0])
            assert self.accept(run[-1])
        return run


def line(*tokens: int, then: dict[int, int] | None = None) -> Automaton:
    """One way only; a last state that may go on with `then` (token to state)."""
    edges = [{token: i + 1} for i, token in enumerate(tokens)]
    return Automaton([*edges, then or {}], frozenset({len(tokens)}))


def random_automaton(rng: np.random.Generator, states: int, vocab_size: int) -> Automaton:
    """Long forced runs between places with several ways; every state reaches the accepting last one."""
    edges: list[dict[int, int]] = []
    for state in range(states - 1):
        ways = int(rng.choice([1, 1, 1, 2, 40, vocab_size // 2]))
        tokens = rng.choice(np.arange(3, vocab_size), ways, replace=False).tolist()
        targets = [state + 1, *rng.integers(max(0, state - 3), min(states, state + 6), ways - 1).tolist()]
        edges.append(dict(zip(tokens, targets, strict=True)))
    last = {int(rng.integers(3, vocab_size)): int(rng.integers(states))} if rng.random() < 0.5 else {}
    return Automaton([*edges, last], frozenset({states - 1}), vocab_size=vocab_size)

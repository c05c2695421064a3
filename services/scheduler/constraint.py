"""A request's grammar while it generates: what it may sample next, and what it need not sample at all.

The state of the grammar is always right behind `forced`, the run of tokens that must follow what is known. So what a
row may sample is known for every step up to the one after the run, although none of the run was computed yet: steps
that are under way sample it (a mask of one token), and what is left of it is computed as one extend row.

Belongs to the request, not to a row or an engine: it survives retraction and the loss of an engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from services.scheduler.grammar import Grammar, GrammarOverrun
from shared.errors import RhizomeError

MOST_FORCED = 256
"""Tokens of a run that are looked for at a time."""
CONTEXT_TOKENS = 16
"""Tokens before a run that its canonical form depends on."""


class Constraint:
    """Lives as long as its request; owned by the event loop."""

    def __init__(self, grammar: Grammar, stop_ids: frozenset[int], *, jump_forward: bool) -> None:
        """
        Args:
            stop_ids: tokens that end the text, allowed where it is complete.
        """
        self._state = grammar.start(stop_ids)
        self._jump = jump_forward
        self.forced: list[int] = []
        """Tokens that must follow the known ones."""
        self._looked = False
        self.caught_up = False
        """`catch_up` was called for the present place."""
        self.busy = 0
        """Calls of `catch_up` under way in another thread: until then nothing of this is called but `allowed`."""

    @property
    def slow(self) -> bool:
        """To be caught up with aside, see `aside.py`."""
        return self._state.slow

    @property
    def ended(self) -> bool:
        """A stop token was taken."""
        return not self.forced and self._state.ended

    def took(self, tokens: Sequence[int]) -> None:
        """These tokens have followed.

        Raises:
            RhizomeError: the grammar does not allow one of them.
        """
        self._looked = self.caught_up = False
        for token in tokens:
            if self.forced:
                expected = self.forced.pop(0)
                if token != expected:
                    raise RhizomeError(f"token {token} was sampled where the grammar forces {expected}")
            elif not self._state.accept(token):
                raise RhizomeError(f"token {token} was sampled where the grammar does not allow it")

    def look_ahead(self, known: Sequence[int], most: int, stop_ids: frozenset[int]) -> None:
        """Find the run that must follow, if there is one.

        Args:
            known: the last known tokens, at least `CONTEXT_TOKENS` where there are so many.
            most: longest run to take.
            stop_ids: tokens that end the request; a run ends before one.
        """
        if self._looked or not self._jump or self.forced or most < 1 or self._state.ended:
            return
        self._looked = True
        self.forced = self._state.take_forced(known, min(most, MOST_FORCED), stop_ids)

    def catch_up(self, known: Sequence[int], most: int, stop_ids: frozenset[int]) -> None:
        """`look_ahead`, and work out the mask that `allowed` will want; what is wrong with it is raised there."""
        self.look_ahead(known, most, stop_ids)
        if not self._state.ended:
            with contextlib.suppress(GrammarOverrun):
                self._state.mask()
        self.caught_up = True

    def allowed(self, ahead: int) -> int | bytes | None:
        """What may be sampled `ahead` tokens after the known ones: one token, or a mask; None = not known yet.

        Raises:
            GrammarOverrun: nothing may, or the grammar takes too long to say.
        """
        if self.busy:
            return None
        if ahead < len(self.forced):
            return self.forced[ahead]
        if ahead > len(self.forced):
            return None
        return self._state.mask()

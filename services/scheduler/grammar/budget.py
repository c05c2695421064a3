"""How much time one request may spend on masks.

An engine bounds the work of a single mask; this bounds the sum, so that one request cannot slow every step of everybody
for as long as it runs. Counts the processor time of the calling thread, which a busy machine does not inflate.
"""

from __future__ import annotations

import time

from services.scheduler.grammar.state import GrammarOverrun

START_MS = 1000.0
"""Credit of a new request: first masks are slower, engines fill caches."""
MASK_MS = 6.0
"""Credit that each mask adds."""
TEXT = (
    "the grammar is too expensive to follow: {:.0f} ms for {:,} masks; make it simpler (less nesting, less ambiguity)"
)


class MaskBudget:
    """Time spent by one request. Owned by its state."""

    __slots__ = ("_left_ms", "_masks", "_spent_ms", "_start_ns")

    def __init__(self) -> None:
        self._left_ms = START_MS
        self._spent_ms = 0.0
        self._masks = 0
        self._start_ns = 0

    def begin(self) -> None:
        self._start_ns = time.thread_time_ns()

    def end(self) -> float:
        """Account for the time since `begin`, and return it in milliseconds.

        Raises:
            GrammarOverrun: the request has used up what it had.
        """
        took_ms = (time.thread_time_ns() - self._start_ns) / 1e6
        self._masks += 1
        self._spent_ms += took_ms
        self._left_ms = min(self._left_ms + MASK_MS, START_MS) - took_ms
        if self._left_ms < 0:
            raise GrammarOverrun(TEXT.format(self._spent_ms, self._masks))
        return took_ms

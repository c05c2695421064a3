"""What a compiled grammar and one request's place in it can do, whichever library is behind them.

Implemented by `llguidance_backend` and `xgrammar_backend`. The step loop knows these Protocols only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared.errors import InvalidRequest


class GrammarOverrun(InvalidRequest):
    """A grammar that compiled costs too much to follow, or came to a place without a way on. Ends its request."""


class GrammarState(Protocol):
    """Where one request is in its grammar. Never shared, never used in two threads at a time."""

    def accept(self, token_id: int) -> bool:
        """Take one token. False: it is not allowed here, and the state is as it was."""
        ...

    def rollback(self, count: int) -> None:
        """Take the last `count` accepted tokens back. `count` may not exceed what was accepted."""
        ...

    def mask(self) -> bytes:
        """Which tokens may come next. Must not be called when `ended`.

        Special tokens are never allowed, except the request's stop ids, which are allowed exactly when `complete`.

        Returns:
            int32 [ceil(V / 32)]: bit i % 32 of word i // 32 is 1 when token i is allowed, bits from V on are 0. One
            object for places that are known to be the same, so that it is hashed once.

        Raises:
            GrammarOverrun: the engine's limits or the request's time budget are used up, or nothing is allowed. The
                state is of no use afterwards.
        """
        ...

    slow: bool
    """The next mask may take longer than a step of other requests should wait."""

    @property
    def ended(self) -> bool:
        """A stop token was accepted: nothing may follow."""
        ...

    @property
    def complete(self) -> bool:
        """The text so far is a whole sentence: a stop token is allowed."""
        ...

    @property
    def exhausted(self) -> bool:
        """The text so far is a whole sentence and no text can make it longer: only a stop token may follow."""
        ...

    def take_forced(self, context: Sequence[int], limit: int, before: frozenset[int] = frozenset()) -> list[int]:
        """Accept the tokens that must follow now, and return them; often none.

        Args:
            context: the row's last tokens (some 16, prompt included), the newest last. They decide where token
                boundaries would canonically be, and are never changed.
            limit: most tokens taken.
            before: tokens that are not taken, nor what is behind them.
        """
        ...


class Grammar(Protocol):
    """Compiled. Immutable, shared by all requests with the same spec."""

    backend: str
    """llguidance or xgrammar."""
    size_bytes: int
    """Estimate of the memory it holds."""

    def start(self, stop_ids: frozenset[int]) -> GrammarState:
        """A new request at the start of the grammar; `stop_ids` are the tokens that end it."""
        ...

"""What the states of all backends have in common: a library's matcher, beside which stop tokens are counted.

The libraries never see a stop token, which may be any token that the request names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.scheduler.grammar.budget import MaskBudget
from services.scheduler.grammar.forced import take_forced
from services.scheduler.grammar.masks import clear_bits, only_bit, set_bits
from services.scheduler.grammar.state import GrammarOverrun
from services.scheduler.grammar.vocabulary import Vocabulary

SLOW_MS = 0.5
"""A mask that took longer is expected to be followed by more of its kind."""


class MatcherState(ABC):
    """Implements `state.GrammarState` and `forced.ForcedState` on the methods below."""

    __slots__ = ("_budget", "_mask_here", "_stop_ids", "_stops_taken", "_vocabulary", "slow")

    def __init__(self, vocabulary: Vocabulary, stop_ids: frozenset[int], *, slow: bool = False) -> None:
        """
        Args:
            stop_ids: those that the vocabulary lacks are left out.
            slow: the first mask is known to take long.
        """
        self.slow = slow
        self._vocabulary = vocabulary
        self._stop_ids = frozenset(i for i in stop_ids if 0 <= i < vocabulary.size)
        self._stops_taken = 0
        self._budget = MaskBudget()
        self._mask_here: bytes | None = None
        """The mask of the present place, once it was asked for."""

    @property
    @abstractmethod
    def complete(self) -> bool: ...

    @property
    @abstractmethod
    def exhausted(self) -> bool: ...

    @abstractmethod
    def forced_text(self) -> bytes: ...

    @abstractmethod
    def _take(self, token_id: int) -> bool:
        """Let the matcher take a token that is no stop token; False, and nothing changes, when it is not allowed."""

    @abstractmethod
    def _take_back(self, count: int) -> None:
        """Let the matcher forget its last `count` tokens."""

    @abstractmethod
    def _matcher_mask(self) -> NDArray[np.int32]:
        """The matcher's mask in [ceil((V + 1) / 32)] words, which may be written to.

        Bit V is the end token by which the matcher is made to know none of the model's.

        Raises:
            GrammarOverrun: the matcher's own limits are used up.
        """

    @property
    def ended(self) -> bool:
        return self._stops_taken > 0

    def accept(self, token_id: int) -> bool:
        if self._stops_taken:
            return False
        if token_id in self._stop_ids:
            self._stops_taken = int(self.complete)
            return self._stops_taken > 0
        if not 0 <= token_id < self._vocabulary.size or not self._take(token_id):
            return False
        self._mask_here = None
        return True

    def rollback(self, count: int) -> None:
        stops = min(count, self._stops_taken)
        self._stops_taken -= stops
        if count > stops:
            self._take_back(count - stops)
            self._mask_here = None

    def mask(self) -> bytes:
        assert not self._stops_taken, "nothing may follow a stop token"
        if self._mask_here is None:
            self._mask_here = self._new_mask()
        return self._mask_here

    def only_token(self) -> int | None:
        try:
            return only_bit(np.frombuffer(self.mask(), np.int32))
        except GrammarOverrun:
            return None

    def take_forced(self, context: Sequence[int], limit: int, before: frozenset[int] = frozenset()) -> list[int]:
        return take_forced(self, self._vocabulary, self._stop_ids, context, limit, before)

    def _new_mask(self) -> bytes:
        """The matcher's mask with the stop ids as they should be, and no end token."""
        self._budget.begin()
        words = self._matcher_mask()
        self.slow = self._budget.end() > SLOW_MS
        clear_bits(words, (self._vocabulary.size,))
        (set_bits if self.complete else clear_bits)(words, self._stop_ids)
        words = words[: (self._vocabulary.size + 31) // 32]
        if not words.any() and not self.complete:
            raise GrammarOverrun("the grammar came to a place where no token of this model can follow")
        return words.tobytes()

"""Images and videos in a request's prompt, and what of them a chunk of it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared import messages as m

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PromptMedia:
    """Of one request. Immutable."""

    spans: list[m.MediaSpan]
    """In order, not overlapping."""
    placeholders: I32
    """[prompt] ids as the model knows them, with a placeholder for every token of media"""
    positions: I32 | None
    """[3, prompt] rotary positions; None where they follow from the index"""
    position_delta: int

    def wanted(self, start: int) -> dict[str, m.EmbeddingRef]:
        """What the prompt from `start` on needs, by key."""
        return {span.ref.key: span.ref for span in self.spans if span.start + span.tokens > start}

    def runs(self, start: int, count: int) -> Iterator[tuple[int, int, str, int]]:
        """Media in prompt tokens [start, start + count): first token within, how many, key, first row."""
        for span in self.spans:
            low, high = max(start, span.start), min(start + count, span.start + span.tokens)
            if low < high:
                yield low - start, high - low, span.ref.key, span.offset + low - span.start

    def ids(self, tokens: I32, start: int) -> I32:
        """Tokens of the row from `start` on, with placeholders instead of the cache's ids of media."""
        return np.where(tokens < 0, self._placeholders(start, len(tokens)), tokens)

    def turns(self, start: int, count: int) -> bool:
        """Whether positions of tokens [start, start + count) are more than index plus `position_delta`."""
        if self.positions is None or start >= self.positions.shape[1]:
            return False
        inside = self.positions[:, start : start + count]
        return not np.array_equal(inside, self._along(start, inside.shape[1]))

    def positions_of(self, start: int, count: int) -> I32:
        """[3, count] rotary positions of the row's tokens, those behind the prompt included."""
        along = self._along(start, count)
        if self.positions is not None:
            inside = self.positions[:, start : start + count]
            along[:, : inside.shape[1]] = inside
        return along

    def _along(self, start: int, count: int) -> I32:
        return np.tile(np.arange(start, start + count, dtype=np.int32) + self.position_delta, (3, 1))

    def _placeholders(self, start: int, count: int) -> I32:
        out = np.zeros(count, np.int32)
        inside = self.placeholders[start : start + count]
        out[: len(inside)] = inside
        return out


def words_behind_media(tokens: I32) -> I32:
    """The last tokens of a text that have no media among them."""
    media = np.flatnonzero(tokens < 0)
    return tokens[media[-1] + 1 :] if len(media) else tokens

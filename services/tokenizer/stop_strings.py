"""Stop strings over a stream of text.

The stream ends at the match that is complete first (the earliest end position; of several that end there, the
longest). Text is held back only while it could still become part of a match. Knows nothing of tokens.
"""

from __future__ import annotations


class StopStrings:
    """The scanner of one stream.

    For each stop string it keeps the first position in the held text where that string could begin; a position that
    failed never becomes possible again, so a long stream costs a constant per character whatever the strings are.
    """

    __slots__ = ("_held", "_include", "_starts", "_stops", "matched")

    def __init__(self, stops: list[str], *, include_in_output: bool) -> None:
        """Args:
        stops: not empty, each not empty.
        include_in_output: leave the matched string in the text.
        """
        self._stops = stops
        self._include = include_in_output
        self._held = ""
        self._starts = [0] * len(stops)
        self.matched: str | None = None

    def add(self, text: str) -> str:
        """Text that may be shown now. After a match `matched` is set and nothing more may be added."""
        if not text:
            return ""
        held = self._held + text
        best_end, best_start = len(held) + 1, len(held)
        for k, stop in enumerate(self._stops):
            start = self._starts[k] = _first_start(held, stop, self._starts[k])
            end = start + len(stop)
            if end <= len(held) and (end, start) < (best_end, best_start):
                best_end, best_start, self.matched = end, start, stop
        if self.matched is not None:
            self._held = ""
            return held[: best_end if self._include else best_start]
        safe = min(self._starts)
        if safe:
            self._starts = [start - safe for start in self._starts]
        self._held = held[safe:]
        return held[:safe]

    def finish(self) -> str:
        """What was held back and will not become a match any more."""
        held, self._held = self._held, ""
        return held


def _first_start(held: str, stop: str, start: int) -> int:
    """First position from `start` on at which `held` has `stop`, or a beginning of it that runs to the end."""
    length = len(stop)
    while True:
        start = held.find(stop[0], start)
        if start < 0:
            return len(held)
        if held.startswith(stop, start):
            return start
        if len(held) - start < length and stop.startswith(held[start:]):
            return start
        start += 1

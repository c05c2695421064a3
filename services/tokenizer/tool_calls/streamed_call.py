"""What the readers have in common that give a call while it is still coming."""

from __future__ import annotations

from abc import ABC, abstractmethod

from services.tokenizer.tool_calls.events import Event, Functions


class StreamedCall(ABC):
    """Implements `events.CallReader`, step by step."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self.done = self.failed = self.started = False
        self.raw = ""

    def feed(self, text: str, at: int, out: list[Event]) -> int:
        while at < len(text) and not (self.done or self.failed):
            before, after = self.started, self._step(text, at, out)
            if not before and not self.started:
                self.raw += text[at:after]
            at = after
        return at

    @abstractmethod
    def _step(self, text: str, at: int, out: list[Event]) -> int:
        """Take the next piece of `text[at:]`; returns the position behind it, `at` when it changed the state only."""

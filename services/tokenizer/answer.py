"""The text of an answer split into what is said, what is thought and what is to be called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from services.tokenizer.reasoning import ReasoningReader
from services.tokenizer.tool_calls.call_scanner import CallScanner
from services.tokenizer.tool_calls.events import CallStart, Event
from shared import messages as m


class AnswerReader:
    """One per answer that may have more than text. Text is added as it is decoded and taken per delta."""

    def __init__(self, reasoning: ReasoningReader | None, calls: CallScanner | None, new_id: Callable[[], str]) -> None:
        """Args:
        new_id: makes the id of a call.
        """
        self._reasoning_reader, self._calls_reader, self._new_id = reasoning, calls, new_id
        self._text = self._reasoning = ""
        self._gains: list[m.ToolCallDelta] = []
        self.calls = 0
        """Calls so far."""

    @property
    def done(self) -> bool:
        """Nothing that the model writes from here on belongs to the answer."""
        return self._calls_reader is not None and self._calls_reader.done

    def add(self, text: str) -> None:
        """The next piece of text."""
        if self._reasoning_reader is not None:
            thought, text = self._reasoning_reader.add(text)
            self._reasoning += thought
        if text:
            self._answer(text)

    def finish(self) -> None:
        """The text is at its end."""
        if self._reasoning_reader is not None:
            thought, text = self._reasoning_reader.finish()
            self._reasoning += thought
            if text:
                self._answer(text)
        if self._calls_reader is not None:
            self._take(self._calls_reader.finish())

    def take(self) -> tuple[str, str, list[m.ToolCallDelta] | None]:
        """Text, reasoning and calls (None when there are none) gained since the last time."""
        gained = self._text, self._reasoning, self._gains or None
        self._text = self._reasoning = ""
        self._gains = []
        return gained

    def _answer(self, text: str) -> None:
        if self._calls_reader is None:
            self._text += text
        else:
            self._take(self._calls_reader.add(text))

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, str):
                self._text += event
            elif isinstance(event, CallStart):
                self._gains.append(m.ToolCallDelta(self.calls, self._new_id(), event.name))
                self.calls += 1
            elif self._gains and self._gains[-1].index == self.calls - 1:
                last = self._gains[-1]
                self._gains[-1] = dataclasses.replace(last, arguments=last.arguments + event.text)
            else:
                self._gains.append(m.ToolCallDelta(self.calls - 1, arguments=event.text))

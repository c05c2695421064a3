"""What a model thinks before it answers, told apart from the answer by the tags that its family uses.

Knows nothing of tokens, requests or messages. Like the readers of tool calls: whatever the pieces of the text, what
comes out adds up to the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WHITESPACE = " \t\r\n"
Phase = Literal["open", "possible", "over"]


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The tags of one family."""

    begin: str
    end: str
    always: bool = False
    """The model thinks from its first token on, whether or not the prompt or the model opens the tag."""

    def phase(self, prompt: str) -> Phase:
        """Where a prompt leaves the model: thinking, free to begin with that, or done with it."""
        tail = prompt.rstrip(WHITESPACE)
        if tail.endswith(self.end):
            return "over"
        return "open" if self.always or tail.endswith(self.begin) else "possible"


THINK = ReasoningFormat("<think>", "</think>")
ALWAYS_THINK = ReasoningFormat("<think>", "</think>", always=True)
KIMI = ReasoningFormat("◁think▷", "◁/think▷")
MISTRAL = ReasoningFormat("[THINK]", "[/THINK]")
FORMATS: dict[str, ReasoningFormat] = {
    "deepseek-r1": ALWAYS_THINK,
    "deepseek-v3": THINK,
    "glm45": THINK,
    "kimi": KIMI,
    "mistral": MISTRAL,
    "qwen3": THINK,
    "qwen3-thinking": ALWAYS_THINK,
}


def format_of_template(source: str) -> ReasoningFormat | None:
    """The tags that a chat template knows."""
    return next((f for f in (THINK, KIMI, MISTRAL) if f.end in source), None)


class ReasoningReader:
    """The state of one answer. White space round the tags belongs to neither side."""

    def __init__(self, form: ReasoningFormat, phase: Phase) -> None:
        self._form = form
        self._opened = phase == "open"
        self._state: Literal["start", "lead", "thinking", "gap", "answer"] = "answer" if phase == "over" else "start"
        self._rest = ""

    def add(self, text: str) -> tuple[str, str]:
        """(reasoning, text of the answer) that the next piece settles."""
        if self._state == "answer":
            return "", text
        self._rest += text
        reasoning = ""
        if self._state == "start":
            self._start()
        if self._state == "lead":
            self._rest = self._rest.lstrip(WHITESPACE)
            self._state = "thinking" if self._rest else "lead"
        if self._state == "thinking":
            reasoning = self._think()
        if self._state == "gap":
            self._rest = self._rest.lstrip(WHITESPACE)
            self._state = "answer" if self._rest else "gap"
        if self._state == "answer":
            answer, self._rest = self._rest, ""
            return reasoning, answer
        return reasoning, ""

    def finish(self) -> tuple[str, str]:
        """What was held back when the text is at its end."""
        held, self._rest = self._rest, ""
        if self._state == "thinking" or (self._state == "start" and self._opened):
            return held.rstrip(WHITESPACE), ""
        return "", held

    def _start(self) -> None:
        """Past the tag that opens, if there is one."""
        begin, seen = self._form.begin, self._rest.lstrip(WHITESPACE)
        if seen.startswith(begin):
            self._rest, self._state = seen[len(begin) :], "lead"
        elif seen and not begin.startswith(seen):
            self._state = "lead" if self._opened else "answer"

    def _think(self) -> str:
        end, rest = self._form.end, self._rest
        at = rest.find(end)
        if at >= 0:
            self._rest, self._state = rest[at + len(end) :], "gap"
            return rest[:at].rstrip(WHITESPACE)
        at = _beginning(rest, end)
        said = rest[:at].rstrip(WHITESPACE)
        self._rest = rest[len(said) :]
        return said


def _beginning(text: str, marker: str) -> int:
    """Where `text` ends in the beginning of `marker`."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return len(text) - length
    return len(text)

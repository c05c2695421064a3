"""Thoughts and answer of a reasoning model, apart: the text between two tags, and the rest. Works on pieces.

Formats have SGLang's names (python/sglang/srt/parser/reasoning_parser.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from rhizome.lang.errors import LanguageError


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Tags; with `implied` the text begins inside the thoughts even without the opening tag."""

    begin: str
    end: str
    implied: bool = False


_THINK = ReasoningFormat("<think>", "</think>")
FORMATS = {
    "deepseek-r1": ReasoningFormat("<think>", "</think>", implied=True),
    "deepseek-v3": _THINK,
    "qwen3": _THINK,
    "qwen3-thinking": ReasoningFormat("<think>", "</think>", implied=True),
    "glm45": _THINK,
    "step3": ReasoningFormat("<think>", "</think>", implied=True),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
}


def reasoning_format(name: str) -> ReasoningFormat:
    """Raises:
    LanguageError: there is no such format.
    """
    if name not in FORMATS:
        raise LanguageError(f"no reasoning format {name!r}: use one of {', '.join(sorted(FORMATS))}")
    return FORMATS[name]


class ReasoningSplitter:
    """Takes a text in pieces, gives (thoughts, answer) pieces; holds back what may become a tag."""

    def __init__(self, name: str) -> None:
        self._format = reasoning_format(name)
        self._inside = self._format.implied
        self._started = self._after_tag = False
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str]:
        """The next piece of the model's text."""
        self._held += piece
        thoughts, answer = "", ""
        while self._held:
            if not self._started and not self._begin():
                break
            if self._after_tag:
                self._held = self._held.lstrip("\n")
                if not self._held:
                    break
                self._after_tag = False
            if not self._inside:
                answer, self._held = answer + self._held, ""
                break
            before, tag, after = self._held.partition(self._format.end)
            if tag:
                self._inside, self._after_tag, self._held = False, True, after
                thoughts += before
                continue
            keep = held_back(self._held, self._format.end)
            thoughts += self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
            break
        return thoughts, answer

    def end(self) -> tuple[str, str]:
        """What was held back, when the model has finished."""
        left, self._held = self._held, ""
        return (left, "") if self._inside else ("", left)

    def _begin(self) -> bool:
        """Whether it is decided if the text opens with thoughts; takes the opening tag away."""
        begin, text = self._format.begin, self._held.lstrip()
        if text.startswith(begin):
            self._inside, self._after_tag, self._held = True, True, text[len(begin) :]
        elif begin.startswith(text):
            return False
        self._started = True
        return True


def held_back(text: str, mark: str) -> int:
    """Length of the longest end of `text` that `mark` begins with (shorter than `mark`)."""
    for size in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0

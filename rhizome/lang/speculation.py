"""API speculative execution for models that continue a text: the surplus of one call as a guess for what follows.

A generation is asked for without its stop string and for more tokens than it needs. What comes after the stop is kept.
When the program appends the very text that the guess begins with, and then generates with the same distribution, the
answer is there already. Everything else drops the guess, and its tokens count as wasted. So does a text that ends
inside a token of the guess: a call would see other tokens there. At temperature 0 the program's text is then what it
would be without; at others each piece is a sample of the same distribution, as one call made it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rhizome.lang.backends.base import Completion
from rhizome.lang.report import Report
from rhizome.lang.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one generation, cut from a longer one."""

    text: str
    tokens: int
    finish: str
    matched_stop: str | None
    estimated: bool

    def meta(self, **more: Any) -> dict[str, Any]:
        reason: dict[str, Any] = {"type": self.finish}
        if self.finish == "length":
            reason["length"] = self.tokens
        elif self.matched_stop is not None:
            reason["matched"] = self.matched_stop
        extra = {"tokens_estimated": True} if self.estimated else {}
        return {"finish_reason": reason, "completion_tokens": self.tokens, **extra, **more}


def applies(params: SamplingParams) -> bool:
    """Whether a generation may be guessed: plain text, one sample, no logprobs."""
    return not (
        params.grammar or params.stop_regex or params.tools or params.return_logprob or params.min_new_tokens
        or (params.n or 1) > 1
    )  # fmt: skip


def ahead(params: SamplingParams, spec_tokens: int) -> SamplingParams:
    """The same generation asking past its end."""
    return dataclasses.replace(params, stop=(), max_new_tokens=max(params.limit, spec_tokens))


class Surplus:
    """Text that was generated and not used yet, with its tokens. Owned by one executor."""

    def __init__(self, completion: Completion, params: SamplingParams) -> None:
        self.text = completion.text
        self._ended = completion.finish == "stop"
        self._distribution = params.distribution()
        exact = token_lengths(completion)
        self.estimated = exact is None
        self._lengths = exact if exact is not None else _spread(self.text, completion.usage.completion_tokens)
        self._inside_token = False

    @property
    def tokens(self) -> int:
        return len(self._lengths)

    def take_text(self, text: str) -> bool:
        """The program appends `text`: whether that is what the guess begins with; it then begins behind it."""
        if not text:
            return True
        if not self.text.startswith(text):
            return False
        self._advance(len(text))
        return True

    def take_gen(self, params: SamplingParams) -> Piece | None:
        """The program generates: its text when the guess decides it, else None."""
        if params.distribution() != self._distribution or not (self.text or self._ended):
            return None
        if self._inside_token and not self.estimated:
            return None  # a call would cut the prompt into other tokens here, and might go on otherwise
        reach = sum(self._lengths[: params.limit])
        stop, at = first_stop(self.text, params.stops)
        if stop is not None and at < reach:
            return self._cut(at, "stop", stop)
        if self.tokens >= params.limit:
            return self._cut(reach, "length", None)
        if self._ended:
            return self._cut(len(self.text), "stop", None)
        return None

    def _cut(self, size: int, finish: str, stop: str | None) -> Piece:
        text, before = self.text[:size], self.tokens
        self._advance(size)
        return Piece(text, before - self.tokens, finish, stop, self.estimated)

    def _advance(self, size: int) -> None:
        self.text = self.text[size:]
        while size and self._lengths:
            if self._lengths[0] > size:
                self._lengths[0] -= size  # the rest of a token counts as one
                self._inside_token = True
                return
            size -= self._lengths.pop(0)
            self._inside_token = False


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[str | None, int]:
    """The stop string that comes first, and where; (None, -1) without one."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return None, -1
    at, stop = min(found)
    return stop, at


def token_lengths(completion: Completion) -> list[int] | None:
    """Characters of each token of the text; None when the server did not tell them or they do not add up."""
    if completion.tokens is None:
        return None
    lengths: list[int] = []
    left = completion.text
    for token in completion.tokens:
        if not left.startswith(token):
            # A character of several tokens is spelled as U+FFFD in each: they share one place.
            if "\ufffd" not in token:
                return None if left else lengths
            return None
        lengths.append(len(token))
        left = left[len(token) :]
    return None if left else lengths


def _spread(text: str, tokens: int) -> list[int]:
    """Lengths of `tokens` tokens where only their number is known: evenly."""
    tokens = min(max(tokens, 1), len(text)) if text else 0
    return [len(text) * (i + 1) // tokens - len(text) * i // tokens for i in range(tokens)]


class Guessing:
    """One executor's use of guesses; counts what they save and cost."""

    def __init__(self, spec_tokens: int, report: Report) -> None:
        self.spec_tokens, self._report = spec_tokens, report
        self._surplus: Surplus | None = None

    def text(self, text: str) -> None:
        """The program appended text."""
        if self._surplus is not None and not self._surplus.take_text(text):
            self.drop()

    def gen(self, params: SamplingParams) -> Piece | None:
        """The guessed text of a generation; None means that a call must be made."""
        if self._surplus is None:
            return None
        piece = self._surplus.take_gen(params) if applies(params) else None
        if piece is None:
            self.drop(retried=True)
            return None
        self._report.calls_saved += 1
        return piece

    def call(self, completion: Completion, params: SamplingParams) -> Piece:
        """A call asked ahead has come back: the text of the generation that made it; the rest becomes the guess."""
        surplus = Surplus(completion, params)
        piece = surplus.take_gen(params)
        if piece is None:  # the server stopped short of the limit, or its tokens cannot be told apart
            tokens = completion.usage.completion_tokens or surplus.tokens
            return Piece(completion.text, tokens, completion.finish, None, surplus.estimated)
        self._surplus = surplus
        return piece

    def drop(self, *, retried: bool = False) -> None:
        """The guess is of no use any more."""
        if self._surplus is not None:
            self._report.tokens_wasted += self._surplus.tokens
            self._report.retries += retried
        self._surplus = None

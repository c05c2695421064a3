"""API speculative execution for chat models that cannot continue a begun answer: a whole turn as one pattern.

The assistant's turn is collected: texts and generations. One call for the turn is then matched against it: texts must
stand where the program has them, generations are what lies between, cut by their stop strings and token limits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from rhizome.lang.backends.base import Completion
from rhizome.lang.errors import LanguageError
from rhizome.lang.ir import Gen
from rhizome.lang.sampling import SamplingParams
from rhizome.lang.slots import Slot
from rhizome.lang.speculation import Piece, applies, first_stop, token_lengths

MAX_TRIES = 3


@dataclass(slots=True)
class TurnGen:
    """A generation of the turn, waiting."""

    expr: Gen
    slot: Slot
    thoughts: Slot | None
    params: SamplingParams

    @property
    def slots(self) -> list[Slot]:
        """The variables that it decides."""
        return [self.slot] if self.thoughts is None else [self.slot, self.thoughts]


@dataclass(slots=True)
class TurnPattern:
    """The open turn, as far as it is not computed. `surplus` is what the model said beyond the part computed before."""

    terms: list[str | TurnGen] = field(default_factory=list)
    surplus: Completion | None = None
    tokens_left: int = 0
    """Tokens of the surplus."""
    begun: bool = False
    """A part of the turn is computed."""

    def add_text(self, text: str) -> None:
        if self.terms and isinstance(last := self.terms[-1], str):
            self.terms[-1] = last + text
        else:
            self.terms.append(text)

    def gens(self) -> list[TurnGen]:
        return [term for term in self.terms if isinstance(term, TurnGen)]

    def params(self, spec_tokens: int) -> SamplingParams:
        """Of the one call for all.

        Raises:
            LanguageError: the generations do not fit into one call.
        """
        gens = self.gens()
        first = gens[0].params
        for gen in gens:
            if not applies(gen.params):
                raise LanguageError(
                    f"gen({gen.expr.name!r}) has a grammar, n, tools or logprobs: it cannot share a speculative turn"
                )
            if gen.params.distribution() != first.distribution():
                raise LanguageError(
                    f"gen({gen.expr.name!r}) samples otherwise than gen({gens[0].expr.name!r}): one call serves the "
                    "whole turn, so their temperature, top_p and penalties must be equal"
                )
        return dataclasses.replace(first, stop=(), max_new_tokens=max(spec_tokens, *(g.params.limit for g in gens)))


@dataclass(frozen=True, slots=True)
class Matched:
    """Pieces of the generations in order, and what was left of the answer (None: nothing)."""

    pieces: list[Piece]
    texts: list[str]
    """The turn's text, term by term."""
    rest: Completion | None
    tokens_left: int


def match(pattern: TurnPattern, answer: Completion, *, at_begin: bool) -> Matched | str:
    """The answer cut along the pattern; a string says why it does not fit.

    Args:
        at_begin: the pattern is the turn from its beginning, where models leave out leading white space.
    """
    lengths = token_lengths(answer)
    estimated = lengths is None
    ends = _token_ends(answer, lengths)
    text, at = answer.text, 0
    pieces: list[Piece] = []
    texts: list[str] = []
    for i, term in enumerate(pattern.terms):
        if isinstance(term, str):
            wanted = term.lstrip() if at_begin and i == 0 and not text.startswith(term) else term
            if not text.startswith(wanted, at):
                return f"expected {wanted!r:.60}, the model said {text[at : at + 60]!r}"
            at += len(wanted)
            texts.append(term)
            continue
        follow = next((t for t in pattern.terms[i + 1 : i + 2] if isinstance(t, str)), None)
        end, finish, stop = _gen_end(text, at, term.params, follow, ends, whole=answer.finish == "stop")
        if end is None:
            return f"gen({term.expr.name!r}) has no end in {text[at : at + 60]!r}"
        count = sum(1 for e in ends if at < e <= end) + (end not in ends and end > at)
        pieces.append(Piece(text[at:end], count, finish, stop, estimated))
        texts.append(text[at:end])
        at = end
    left = sum(1 for e in ends if e > at)
    rest = dataclasses.replace(answer, text=text[at:], tokens=None) if at < len(text) else None
    return Matched(pieces, texts, rest, left)


def _gen_end(
    text: str, at: int, params: SamplingParams, follow: str | None, ends: list[int], *, whole: bool
) -> tuple[int | None, str, str | None]:
    """Where a generation that begins at `at` ends, why, and with which stop string."""
    later = [e for e in ends if e > at]
    limit = later[params.limit - 1] if len(later) >= params.limit > 0 else None
    stop, offset = first_stop(text[at:], params.stops)
    if stop is not None and (limit is None or at + offset < limit):
        return at + offset, "stop", stop
    if follow is not None:
        found = text.find(follow, at)
        if found >= 0 and (limit is None or found <= limit):
            return found, "stop", None
        return None, "", None
    if limit is not None:
        return limit, "length", None
    return len(text), "stop" if whole else "length", None


def _token_ends(answer: Completion, lengths: list[int] | None) -> list[int]:
    """Character positions at which tokens end."""
    if lengths is None:
        count = min(max(answer.usage.completion_tokens, 1), len(answer.text)) if answer.text else 0
        return [len(answer.text) * (i + 1) // count for i in range(count)]
    ends, at = [], 0
    for length in lengths:
        at += length
        if length:
            ends.append(at)
    return ends

"""How `select` decides: from the log probabilities of each choice's tokens to one choice.

Formulas are SGLang's (python/sglang/lang/choices.py). Token entries are `[logprob, token id, text]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rhizome.lang.errors import LanguageError

Entries = Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class ChoicesDecision:
    """The choice and the figures that led to it."""

    decision: str
    meta_info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a backend measured: per choice its tokens after the prompt, and the same without the prompt."""

    choices: Sequence[str]
    input_token_logprobs: Sequence[Entries]
    unconditional_token_logprobs: Sequence[Entries] | None = None

    def normalized(self) -> list[float]:
        """Mean log probability per token of each choice; the first token of all has none and is left out."""
        means = []
        for entries in self.input_token_logprobs:
            values = [e[0] for e in entries if e[0] is not None]
            means.append(fmean(values) if values else float("-inf"))
        return means

    def meta(self, **more: Any) -> dict[str, Any]:
        return {
            "normalized_prompt_logprobs": self.normalized(),
            "input_token_logprobs": self.input_token_logprobs,
            **more,
        }


class ChoicesSamplingMethod(ABC):
    """One way to decide. Stateless."""

    requires_unconditional_logprobs = False

    @abstractmethod
    def __call__(self, scores: Scores) -> ChoicesDecision: ...

    def __repr__(self) -> str:
        return type(self).__name__


class TokenLengthNormalized(ChoicesSamplingMethod):
    """The highest mean log probability per token."""

    def __call__(self, scores: Scores) -> ChoicesDecision:
        return ChoicesDecision(scores.choices[_best(scores.normalized())], scores.meta())


class GreedyTokenSelection(ChoicesSamplingMethod):
    """Token after token, keep the choices whose token is the most likely there.

    A choice that has ended goes on with its mean, so that it can be compared with longer ones.
    """

    def __call__(self, scores: Scores) -> ChoicesDecision:
        width = max(len(entries) for entries in scores.input_token_logprobs)
        matrix = []
        for entries in scores.input_token_logprobs:
            row = [0.0 if e[0] is None else float(e[0]) for e in entries]
            matrix.append(row + [fmean(row) if row else float("-inf")] * (width - len(row)))
        left = list(range(len(matrix)))
        for column in range(width):
            most = max(matrix[i][column] for i in left)
            left = [i for i in left if matrix[i][column] == most]
            if len(left) == 1:
                break
        return ChoicesDecision(scores.choices[left[0]], scores.meta(greedy_logprob_matrix=matrix))


class UnconditionalLikelihoodNormalized(ChoicesSamplingMethod):
    """The highest mean gain of a token's log probability through the prompt."""

    requires_unconditional_logprobs = True

    def __call__(self, scores: Scores) -> ChoicesDecision:
        if scores.unconditional_token_logprobs is None:
            raise LanguageError("unconditional_likelihood_normalized needs log probabilities without the prompt")
        gains = []
        for with_prompt, alone in zip(scores.input_token_logprobs, scores.unconditional_token_logprobs, strict=True):
            pairs = zip(with_prompt, alone, strict=True)
            values = [(a[0] or 0.0) - (b[0] or 0.0) for a, b in pairs]
            gains.append(fmean(values) if values else float("-inf"))
        more = {
            "unconditional_token_logprobs": scores.unconditional_token_logprobs,
            "normalized_unconditional_prompt_logprobs": gains,
        }
        return ChoicesDecision(scores.choices[_best(gains)], scores.meta(**more))


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)

"""The formulas of `select`, on figures that one can check by hand."""

from __future__ import annotations

import pytest

from rhizome.lang.choices import (
    Scores,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from rhizome.lang.errors import LanguageError


def scores(*rows: list[float | None], alone: list[list[float | None]] | None = None) -> Scores:
    entries = [[[p, i, None] for i, p in enumerate(row)] for row in rows]
    unconditional = None if alone is None else [[[p, i, None] for i, p in enumerate(row)] for row in alone]
    return Scores(["a", "b", "c"][: len(rows)], entries, unconditional)


def test_length_normalized_takes_the_best_mean_and_skips_the_first_token_of_all() -> None:
    decision = token_length_normalized(scores([-1.0, -5.0], [-2.0, -2.5], [None, -9.0]))
    assert decision.decision == "b"
    assert decision.meta_info["normalized_prompt_logprobs"] == [-3.0, -2.25, -9.0]


def test_greedy_decides_at_the_first_token_that_differs() -> None:
    assert greedy_token_selection(scores([-1.0, -9.0], [-2.0, -0.1])).decision == "a"


def test_greedy_extends_a_shorter_choice_by_its_mean() -> None:
    decision = greedy_token_selection(scores([-1.0], [-1.0, -0.5]))
    assert decision.decision == "b"
    assert decision.meta_info["greedy_logprob_matrix"] == [[-1.0, -1.0], [-1.0, -0.5]]


def test_unconditional_takes_what_the_prompt_helps_most() -> None:
    decision = unconditional_likelihood_normalized(
        scores([-1.0, -1.0], [-3.0, -3.0], alone=[[None, -1.5], [None, -9.0]])
    )
    assert decision.decision == "b"
    assert decision.meta_info["normalized_unconditional_prompt_logprobs"] == [-0.25, 1.5]
    with pytest.raises(LanguageError, match="without the prompt"):
        unconditional_likelihood_normalized(scores([-1.0]))


def test_equal_choices_go_to_the_first() -> None:
    for method in (token_length_normalized, greedy_token_selection):
        assert method(scores([-1.0], [-1.0])).decision == "a"

"""What holds for every state: stop tokens, special tokens, padding, rollback, budgets."""

from __future__ import annotations

import random

import numpy as np
import pytest
from llguidance import LLMatcher

from services.scheduler.grammar import budget
from services.scheduler.grammar.llguidance_backend import LIMITS, Engine
from services.scheduler.grammar.masks import allowed_ids, clear_bits, only_bit, set_bits
from services.scheduler.grammar.state import GrammarOverrun
from tests.unit.scheduler.grammar.random_schemas import random_schema
from tests.unit.scheduler.grammar.tiny import (
    STOP,
    STOPS,
    byte_ids,
    follow,
    forced,
    mask_of,
    of_regex,
    of_schema,
    vocabulary,
)


def test_a_stop_token_is_allowed_exactly_when_the_sentence_is_whole() -> None:
    state = of_regex("ab?").start(STOPS)
    assert STOP not in mask_of(state)
    assert not state.accept(STOP)
    assert follow(state, "a")
    assert state.complete
    assert not state.exhausted
    assert STOP in mask_of(state)
    assert follow(state, "b")
    assert state.exhausted
    assert mask_of(state).tolist() == [STOP]
    assert state.accept(STOP)
    assert state.ended
    assert not state.accept(STOP)
    assert not follow(state, "b")


def test_special_tokens_and_padding_are_never_allowed_in_a_text() -> None:
    state = of_regex("(?s:.)*").start(STOPS)
    allowed = {*mask_of(state).tolist()}
    padding = {i for i, data in enumerate(vocabulary().token_bytes) if not data}
    assert allowed & padding == STOPS
    assert {i for i, data in enumerate(vocabulary().token_bytes) if data.isascii() and data} <= allowed
    assert not any(state.accept(i) for i in padding - STOPS)
    assert not state.accept(-1)
    assert not state.accept(vocabulary().size)


def test_without_stop_ids_a_finished_sentence_allows_nothing() -> None:
    state = of_regex("a").start(frozenset())
    assert follow(state, "a")
    assert state.exhausted
    assert mask_of(state).size == 0


def test_a_stop_id_that_is_also_text_ends_and_is_no_text() -> None:
    comma = byte_ids()[ord(",")]
    state = of_regex("a,?").start(frozenset((comma, 10**9)))
    assert not state.accept(comma)
    assert follow(state, "a")
    assert mask_of(state).tolist() == [comma]
    assert state.accept(comma)
    assert state.ended


def test_a_refused_token_changes_nothing() -> None:
    state = of_schema({"type": "array", "items": {"type": "integer"}}).start(STOPS)
    assert follow(state, "[1")
    before = mask_of(state).tolist()
    for token_id in range(vocabulary().size):
        if token_id not in before:
            assert not state.accept(token_id)
    assert mask_of(state).tolist() == before
    assert follow(state, ",2]")
    assert state.complete


@pytest.mark.parametrize("seed", range(40))
def test_rollback_returns_to_the_same_mask(seed: int) -> None:
    rng = random.Random(seed)
    state = of_schema(random_schema(seed)).start(STOPS)
    masks, taken = [mask_of(state).tolist()], 0
    for _ in range(60):
        if rng.random() < 0.3 and taken:
            count = rng.randrange(1, taken + 1)
            state.rollback(count)
            taken -= count
            del masks[taken + 1 :]
        elif not state.ended:
            assert state.accept(rng.choice(masks[-1]))
            taken += 1
            masks.append([] if state.ended else mask_of(state).tolist())
        if not state.ended:
            assert mask_of(state).tolist() == masks[-1]


def test_rolling_a_stop_token_back_reopens_the_text() -> None:
    state = of_regex("ab?").start(STOPS)
    assert follow(state, "a")
    assert state.accept(STOP)
    state.rollback(1)
    assert not state.ended
    assert follow(state, "b")
    state.rollback(2)
    assert not state.complete


def test_two_requests_of_one_grammar_do_not_meet() -> None:
    grammar = of_regex("ab|cd")
    first, second = grammar.start(STOPS), grammar.start(frozenset())
    assert follow(first, "ab")
    assert follow(second, "c")
    assert first.complete
    assert not second.complete


def test_a_mask_has_a_bit_for_every_id_of_the_model() -> None:
    state = of_regex("a").start(STOPS)
    assert len(state.mask()) == 4 * -(-vocabulary().size // 32)
    assert mask_of(state).tolist() == [i for i, data in enumerate(vocabulary().token_bytes) if data == b"a"]


def test_a_grammar_that_is_too_expensive_to_follow_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "step_lexer_fuel", 50)  # type: ignore[arg-type]
    state = Engine(vocabulary()).build(LLMatcher.grammar_from_regex(r"ab|x\w{1,9}\d{1,9}"), "regex").start(STOPS)
    assert follow(state, "x")
    with pytest.raises(GrammarOverrun, match="too expensive"):
        mask_of(state)
    assert not state.complete
    assert forced(state, [], 5) == []


def test_time_over_the_budget_ends_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**12, int(60e6)))
    monkeypatch.setattr(budget.time, "thread_time_ns", lambda: next(clock))
    state = of_schema({"type": "string", "pattern": "x"}).start(STOPS)
    assert follow(state, '"')
    for _ in range(18):
        mask_of(state)
        assert follow(state, "a")
    with pytest.raises(GrammarOverrun, match="1140 ms for 19 masks"):
        mask_of(state)


def test_bits() -> None:
    words = np.zeros(3, np.int32)
    set_bits(words, (0, 31, 32, 95))
    assert allowed_ids(words).tolist() == [0, 31, 32, 95]
    assert only_bit(words) is None
    clear_bits(words, (0, 32, 95))
    assert only_bit(words) == 31
    clear_bits(words, (31,))
    assert only_bit(words) is None

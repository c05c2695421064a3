"""Forced runs: what must come next, cut as the tokenizer would cut it, and no token more."""

from __future__ import annotations

import json
import random

import pytest

from services.scheduler.grammar.forced import take_forced
from services.scheduler.grammar.state import Grammar
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

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["cat", "cow"]}},
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def forced_text(grammar: Grammar, prefix: str, limit: int = 100) -> bytes:
    """What is forced behind a text whose tokens are canonical."""
    state = grammar.start(STOPS)
    context = vocabulary().encode(prefix.encode())
    assert all(state.accept(i) for i in context)
    return vocabulary().text_of(forced(state, context, limit))


def test_what_is_forced_is_the_start_of_what_must_come() -> None:
    grammar = of_schema(PERSON)
    expected = [("", '{"name":"'), ('{"name":"Al"', ',"age":'), ('{"name":"Al","age":3,', '"kind":"c')]
    for prefix, must in expected:
        got = forced_text(grammar, prefix)
        assert got
        assert must.encode().startswith(got)
        ids = vocabulary().encode(got)
        assert ids == vocabulary().encode(must.encode())[: len(ids)]
        assert len(vocabulary().encode(must.encode())) - len(ids) <= 1


def test_where_the_grammar_ends_nothing_is_held_back_and_the_stop_token_follows() -> None:
    state = of_regex("(yes|no) indeed").start(STOPS)
    assert follow(state, "y")
    run = forced(state, [byte_ids()[ord("y")]], 100)
    assert vocabulary().text_of(run) == b"es indeed"
    assert run[-1] == STOP


def test_of_several_stop_tokens_none_is_forced() -> None:
    state = of_regex("(yes|no) indeed").start(frozenset((STOP, 0)))
    assert follow(state, "y")
    assert STOP not in forced(state, [], 100)


def test_a_run_stops_where_the_sentence_may_end() -> None:
    state = of_regex("x(foo(bar)?|y)").start(STOPS)
    assert follow(state, "xf")
    assert b"oo".startswith(vocabulary().text_of(forced(state, [], 100)))
    assert follow(state, "oo")
    assert state.complete
    assert forced(state, [], 100) == []


def test_nothing_is_forced_where_two_texts_are_possible() -> None:
    state = of_schema(PERSON).start(STOPS)
    assert follow(state, '{"name":"')
    assert forced(state, [], 100) == []


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_a_run_is_no_longer_than_asked(limit: int) -> None:
    state = of_regex("a very long sentence indeed").start(STOPS)
    everything = forced(state, [], 100)
    assert forced(state, [], limit) == everything[:limit]


def test_tokens_that_exist_are_not_changed_even_where_they_would_merge() -> None:
    """The prompt ends with half of a token of which the forced text is the other half."""
    pair = next(data for data in vocabulary().token_bytes if len(data) == 2 and data.isalpha())
    grammar = of_regex(pair[1:].decode() + " or else")
    context = [byte_ids()[pair[0]]]
    run = forced(grammar.start(STOPS), context, 100)
    assert vocabulary().text_of(run) == pair[1:] + b" or else"


def test_the_text_before_decides_where_tokens_end() -> None:
    """Behind a quote, a quote and colon are cut as in the whole text, not as if they stood alone."""
    whole = '{"name":"Alice","age":33}'
    ids = vocabulary().encode(whole.encode())
    state = of_regex(r'\{"name":"Alice","age":33\}').start(STOPS)
    at = len(ids) // 2
    assert all(state.accept(i) for i in ids[:at])
    assert forced(state, ids[:at], 100) == [*ids[at:], STOP]


def test_special_tokens_in_the_context_are_no_text() -> None:
    state = of_regex("indeed so").start(STOPS)
    context = [*vocabulary().encode(b"someth"), 1, 3]
    assert forced(state, context, 100) == [*vocabulary().encode(b"indeed so"), STOP]


def test_half_a_character_is_left_to_the_model() -> None:
    state = of_regex("a(é|è)").start(STOPS)
    run = forced(state, [], 100)
    assert vocabulary().text_of(run) in (b"", b"a")
    assert follow(state, b"a\xc3")
    assert forced(state, [], 100) == []


def test_a_run_may_begin_within_a_character() -> None:
    state = of_regex("日本語?x").start(STOPS)
    data = "日".encode()
    assert follow(state, data[:1])
    run = forced(state, [byte_ids()[data[0]]], 100)
    assert "日本".encode()[1:].startswith(vocabulary().text_of(run))


def test_the_text_of_a_special_token_is_forced_as_text() -> None:
    state = of_schema({"const": "say <|im_end|>"}).start(STOPS)
    run = forced(state, [], 100)
    assert vocabulary().text_of(run) == json.dumps("say <|im_end|>").encode()
    assert run[-1] == STOP
    assert STOP not in run[:-1]


@pytest.mark.parametrize("seed", range(40))
def test_forced_tokens_are_accepted_one_by_one_and_the_state_is_as_before(seed: int) -> None:
    rng = random.Random(seed)
    state, context = of_schema(random_schema(seed)).start(STOPS), [5, 6, 7]
    while not state.ended and len(context) < 60:
        before = mask_of(state).tolist()
        run = forced(state, context[-16:], 20)
        assert mask_of(state).tolist() == before
        for n, token_id in enumerate(run):
            assert n == 0 or not state.complete or state.exhausted
            assert state.accept(token_id)
        if run:
            text = vocabulary().text_of(run)
            state.rollback(len(run))
            assert text == b"" or follow_only(state, text)
            assert all(state.accept(i) for i in run)
        context += run
        if not state.ended:
            chosen = rng.choice(mask_of(state).tolist())
            assert state.accept(chosen)
            context.append(chosen)


def follow_only(state: object, text: bytes) -> bool:
    """Whether at every byte of `text` no other byte is possible."""
    for n, byte in enumerate(text):
        others = [i for b, i in byte_ids().items() if b != byte and state.accept(i)]  # type: ignore[attr-defined]
        if others or not state.accept(byte_ids()[byte]):  # type: ignore[attr-defined]
            return False
        if n + 1 == len(text):
            state.rollback(len(text))  # type: ignore[attr-defined]
    return True


class OneWay:
    """A state that forces one text and judges nothing."""

    ended = exhausted = complete = False

    def __init__(self, text: bytes) -> None:
        self._text, self.taken = text, 0

    def accept(self, token_id: int) -> bool:
        self.taken += 1
        return True

    def rollback(self, count: int) -> None:
        self.taken -= count

    def only_token(self) -> int | None:
        return None

    def forced_text(self) -> bytes:
        return self._text


def test_a_last_token_that_is_not_alone_in_its_mask_is_held_back() -> None:
    state = OneWay(b'"name":"')
    ids = vocabulary().encode(b'"name":"')
    assert take_forced(state, vocabulary(), STOPS, [], 100, frozenset()) == ids[:-1]
    assert state.taken == len(ids) - 1

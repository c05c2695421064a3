"""The places of regular grammars: never one for two that differ, and one for those that a grammar repeats."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benchmarks.structured_sections.tasks import EXTRACTION, LONG
from services.scheduler.grammar import automaton
from services.scheduler.grammar.automaton import START, UNKNOWN, Automaton, automaton_of
from services.scheduler.grammar.llguidance_backend import LlguidanceGrammar
from services.scheduler.grammar.masks import MaskMemory
from services.scheduler.grammar.regex_tree import NotPlain, parse
from services.scheduler.grammar.state import Grammar
from shared.grammar import GrammarSpec
from tests.unit.scheduler.grammar.random_schemas import random_schema
from tests.unit.scheduler.grammar.regexes import REGEXES
from tests.unit.scheduler.grammar.tiny import STOP, STOPS, build, forced, mask_of, of_regex, of_schema, vocabulary

MORE = [
    r'\{"name": "[a-zA-Z0-9 ]{1,16}", "kind": "(cat|cow|crow)", "at": [0-9]{1,2}\.[0-9]\}', r"[\w\d\s]{1,16}",
    r"(a|b)*a(a|b){6}", r"(ab?){3,5}c*", r"[é-ü]x|[^a]y", r"é(à|è)*", r"\x{e9}[\u00e9-\u00ff]?", r"(x?){2,9}y",
]  # fmt: skip

WHOLE = {"additionalProperties": False, "type": "object"}
PLAIN: list[Any] = [
    {"type": "string"}, {"type": "string", "maxLength": 12}, {"type": "string", "minLength": 3}, {"type": "integer"},
    {"type": "number"}, {"type": ["null", "integer", "boolean"]}, {"enum": ["a", "ab", 'q"', "é", 1, 12, None, [1]]},
    {"type": "integer", "minimum": -3, "exclusiveMaximum": 120}, {"type": "array", "items": {"type": "number"}},
    {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 3},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 0}, {**WHOLE}, {**WHOLE, "properties": {}},
    {**WHOLE, "properties": {name: {"type": "integer"} for name in ("a", "ab", "b", "é")}},
    {**WHOLE, "properties": {name: {"type": "string"} for name in ("x", "y", "z")}, "required": ["y"]},
    {"anyOf": [{**WHOLE, "properties": {"k": {"const": k}, "v": v}, "required": ["k", "v"]}
               for k, v in (("n", {"type": "number"}), ("s", {"type": "string"}), ("t", {"$ref": "#/$defs/t"}))],
     "$defs": {"t": {"type": "array", "items": {"enum": ["up", "upper"]}}}},
    {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}, {"type": "null"}]},
    EXTRACTION, LONG,
]  # fmt: skip


def sure_states(pattern: str) -> Automaton:
    return Automaton(parse(pattern))


@pytest.mark.parametrize("pattern", REGEXES + MORE)
def test_masks_and_runs_of_a_regex_are_those_of_a_request_that_remembers_nothing(pattern: str) -> None:
    grammar = of_regex(pattern)
    for walk in range(12):
        assert_the_same_as_without_memory(grammar, walk)


@pytest.mark.parametrize("seed", range(220))
def test_masks_and_runs_of_a_schema_are_those_of_a_request_that_remembers_nothing(seed: int) -> None:
    grammar = of_schema(random_schema(seed))
    for walk in range(3):
        assert_the_same_as_without_memory(grammar, walk)


@pytest.mark.parametrize("schema", PLAIN)
def test_masks_and_runs_of_a_plain_schema_are_those_of_a_request_that_remembers_nothing(schema: Any) -> None:
    grammar = of_schema(schema)
    assert isinstance(grammar, LlguidanceGrammar)
    assert grammar.automaton is not None
    for walk in range(40):
        assert_the_same_as_without_memory(grammar, walk)


def assert_the_same_as_without_memory(grammar: Grammar, seed: int) -> None:
    assert isinstance(grammar, LlguidanceGrammar)
    plain = LlguidanceGrammar(grammar.engine, grammar.matcher, None, 0)
    rng, state, judge, context = random.Random(seed), grammar.start(STOPS), plain.start(STOPS), [5]
    for _ in range(70):
        if judge.ended:
            break
        assert state.mask() == judge.mask(), vocabulary().text_of(context)
        assert forced(state, context, 9) == forced(judge, context, 9)
        allowed = mask_of(judge).tolist()
        shortest = [i for i in allowed if len(vocabulary().token_bytes[i]) == 1]
        chosen = rng.choice(shortest if shortest and rng.random() < 0.5 else allowed)
        assert state.accept(chosen)
        assert judge.accept(chosen)
        context.append(chosen)
        if rng.random() < 0.1 and len(context) > 1:
            count = rng.randrange(1, len(context))
            state.rollback(count)
            judge.rollback(count)
            del context[len(context) - count :]


@pytest.mark.parametrize(
    ("pattern", "first", "second"),
    [
        (r"[a-z]+ (yes|no)", "abc", "wxyz"), (r"(cat|dog) food", "cat", "dog"), (r"[a-z]{2,5}!", "ab", "yz"),
        (r"a{3,}b", "aaa", "aaaaaa"), (r"(\w+@)?x", "a@", "bc_1@"),
    ],
)  # fmt: skip
def test_texts_with_the_same_ways_on_share_a_place(pattern: str, first: str, second: str) -> None:
    places = sure_states(pattern)
    assert places.walk(START, first.encode()) == places.walk(START, second.encode()) != UNKNOWN


@pytest.mark.parametrize(
    ("pattern", "first", "second"),
    [(r"[a-z]{2,5}!", "ab", "abc"), (r"(cat|dog)s?", "cat", "cats"), (r"(ab|ac)d|aa", "a", "ab"), (r"a*b?", "a", "ab")],
)
def test_texts_with_other_ways_on_do_not(pattern: str, first: str, second: str) -> None:
    places = sure_states(pattern)
    assert places.walk(START, first.encode()) != places.walk(START, second.encode())


def test_a_request_is_given_the_mask_that_another_has_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = of_regex(r"[a-z]{1,9};[a-z]{1,9}")
    masks = [mask_after(grammar, text) for text in ("name;q", "xxxx;w")]
    assert masks[0] is masks[1]
    fresh = of_regex(r"[a-z]{1,9};[a-z]{1,9}")
    assert mask_after(fresh, "name;q") == masks[0]
    assert mask_after(fresh, "name;q") is not masks[0]


def mask_after(grammar: object, text: str) -> bytes:
    state = grammar.start(STOPS)  # type: ignore[attr-defined]
    assert all(state.accept(token_id) for token_id in vocabulary().encode(text.encode()))
    return bytes(state.mask())


def test_stop_tokens_belong_to_a_request_and_not_to_the_place() -> None:
    grammar = of_regex("ab?")
    first, second = grammar.start(STOPS), grammar.start(frozenset())
    for state in (first, second):
        assert state.accept(vocabulary().encode(b"a")[0])
    assert STOP in mask_of(first)
    assert STOP not in mask_of(second)


@pytest.mark.parametrize("pattern", [".{1,5}!", "[^a]{1,5}!"])
def test_all_characters_beyond_ascii_are_alike_where_all_match(pattern: str) -> None:
    places = sure_states(pattern)
    seconds = {places.walk(START, text.encode()) for text in ("b", "é", "日", "😀")}
    assert len(seconds) == 1
    assert UNKNOWN not in seconds
    halves = [places.walk(START, "日".encode()[:2]), places.walk(START, "本".encode()[:2])]
    assert len({*halves, *seconds, UNKNOWN}) == 4


def test_characters_beyond_ascii_are_not_known_where_some_match() -> None:
    places = sure_states(r"naïve (\w+|x)")
    at = places.walk(START, "naïve ".encode())
    assert at != UNKNOWN
    assert places.walk(at, b"abc") != UNKNOWN
    assert places.walk(at, "é".encode()) == UNKNOWN
    assert places.walk(UNKNOWN, b"a") == UNKNOWN


@pytest.mark.parametrize(
    "pattern",
    [r"^a", r"a$", r"(?i:a)", r"a+?", r"\bx", r"\p{L}", r"(?P<n>a)", r"[[:alpha:]]", r"[a&&b]", r"a**", r"(a", r"a)",
     r"[a", r"a{2,1}", r"*a", r"\q", r"[b-a]", r"\xZZ", "(" * 60 + "a" + ")" * 60, r"\x{D800}"],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_the_library(pattern: str) -> None:
    with pytest.raises(NotPlain):
        parse(pattern)
    assert automaton_of(GrammarSpec("regex", pattern)) is None


@pytest.mark.parametrize("pattern", [r"(.{0,100}){0,100}", r"a{5000}", r"((a?){60}){60}", r"(((a{9}){9}){9}){9}"])
def test_what_would_be_large_is_left_to_the_library(pattern: str) -> None:
    assert automaton_of(GrammarSpec("regex", pattern)) is None


def test_a_text_that_makes_ever_new_places_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "MOST_WORK", 2000)
    places, rng = sure_states(r"(a|b)*a(a|b){12}"), random.Random(1)
    at = places.walk(START, bytes(rng.choice(b"ab") for _ in range(4000)))
    assert at == UNKNOWN
    assert places.num_states < 2000


def test_choices_have_places_and_recursive_schemas_have_none() -> None:
    choice = automaton_of(GrammarSpec("choice", json.dumps(["cat", "crow", "été"])))
    assert choice is not None
    assert choice.walk(START, b"cat") == choice.walk(START, b"crow") == choice.walk(START, "été".encode()) != UNKNOWN
    tree = {**WHOLE, "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    for schema in ({}, tree, {"type": "string", "pattern": "a"}, {"type": "object"}, {"type": "integer", "minimum": 3}):
        assert automaton_of(GrammarSpec("json_schema", json.dumps(schema))) is None
    assert automaton_of(GrammarSpec("json_schema", json.dumps(LONG), max_whitespace=1)) is None
    assert mask_of(build(GrammarSpec("choice", '["cat","crow"]')).start(STOPS)).size


def test_memory_for_masks_is_bounded() -> None:
    memory = MaskMemory(100)
    for i in range(30):
        memory.put(i, bytes(10))
        memory.get(0)
    assert [i for i in range(30) if memory.get(i) is not None] == [0, *range(21, 30)]


def test_places_are_made_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    step, inside, most = Automaton._step, 0, 0

    def watched(self: Automaton, state: int, byte: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1
        return step(self, state, byte)

    monkeypatch.setattr(Automaton, "_step", watched)
    places = sure_states(r"(a|b)*a(a|b){7}")
    texts = [bytes(random.Random(seed).choice(b"ab") for _ in range(60)) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: places.walk(START, text), texts))
    assert most == 1
    assert found == [places.walk(START, text) for text in texts]

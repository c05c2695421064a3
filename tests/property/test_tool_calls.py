"""However an answer is cut into pieces, its tool calls, reasoning and content add up to the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.reasoning import FORMATS as REASONING
from services.tokenizer.reasoning import Phase, ReasoningReader
from services.tokenizer.tool_calls.formats import FORMATS
from tests.unit.tokenizer.tool_calls.reading import read
from tests.unit.tokenizer.tool_calls.test_formats import CASES

NAMES = ["hermes", "llama3", "mistral", "nemotron", "pythonic", "qwen3_coder"]
FRAGMENTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<TOOLCALL>", "</TOOLCALL>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]",
        "[CALL_ID]", "<|tool_call_start|>", "<|tool_call_end|>", '{"name": "f", "arguments": {"a": [1, "x}"]}}',
        '{"name": "add"', '{"name":', '"f"', ', "arguments": ', "{}", "{", "}", "[", "]", "(", ")", "f(", "a=1", ", ",
        "; ", "\n", " ", "\\", '"', "'", "é", "add", "<tool", "text", "null", ":", "[TOOL", "_CALLS]",
        "<function=", "<function=add>", "<parameter=a>", "</parameter>", "</function>", ">",
    ]
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS | st.text(max_size=3), max_size=14).map("".join)


def cut(text: str, points: list[int]) -> list[str]:
    places = [0, *sorted(p % (len(text) + 1) for p in points), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("case", CASES)
def test_every_single_cut_and_single_characters_give_what_one_piece_gives(case: str) -> None:
    name, text, expected = CASES[case]
    for at in range(len(text)):
        assert read(FORMATS[name], [text[:at], text[at:]]) == expected, at
    assert read(FORMATS[name], list(text)) == expected


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS, points=st.lists(st.integers(0, 10_000), max_size=6), only_one=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_text_cut_anyhow_gives_what_one_piece_gives(
    name: str, text: str, points: list[int], only_one: bool
) -> None:
    whole = read(FORMATS[name], [text], only_one=only_one)
    assert read(FORMATS[name], cut(text, points), only_one=only_one) == whole
    assert read(FORMATS[name], list(text), only_one=only_one) == whole


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_text_without_a_call_is_content_to_the_last_character(name: str, text: str) -> None:
    content, calls = read(FORMATS[name], [text])
    assert calls or content == text


TAGS = ["<think>", "</think>", "<thi", "</th", "[THINK]", "[/THINK]", "◁think▷", "◁/think▷", "\n", " ", "so"]
THOUGHTS = st.lists(st.sampled_from(TAGS) | st.text(max_size=3), max_size=10).map("".join)
PHASES = st.sampled_from(["open", "possible", "over"])
POINTS = st.lists(st.integers(0, 10_000), max_size=6)


def split(name: str, phase: Phase, pieces: list[str]) -> tuple[str, str]:
    reader = ReasoningReader(REASONING[name], phase)
    gains = [*(reader.add(piece) for piece in pieces), reader.finish()]
    return "".join(g[0] for g in gains), "".join(g[1] for g in gains)


@pytest.mark.parametrize("name", ["qwen3", "kimi", "mistral"])
@given(text=THOUGHTS, points=POINTS, phase=PHASES)
@settings(max_examples=300, deadline=None)
def test_reasoning_cut_anyhow_gives_what_one_piece_gives(name: str, text: str, points: list[int], phase: Phase) -> None:
    whole = split(name, phase, [text])
    assert split(name, phase, cut(text, points)) == whole
    assert split(name, phase, list(text)) == whole
    if REASONING[name].begin not in text and phase != "open":
        assert whole == ("", text)

"""Token batches in, deltas with content, reasoning and tool calls out; ids and logprobs untouched."""

from __future__ import annotations

import numpy as np
import pytest

from services.tokenizer.answer import AnswerReader
from services.tokenizer.detokenizer import Detokenizers
from services.tokenizer.prompt import Prompt
from services.tokenizer.reasoning import THINK, Phase, ReasoningReader
from services.tokenizer.streams import StreamTable
from services.tokenizer.tool_calls.call_scanner import CallScanner
from services.tokenizer.tool_calls.formats import HERMES
from shared import messages as m
from shared.messages.generation import LENGTH, RUNNING, STOPPED
from shared.sampling import SamplingParams
from shared.vocabulary import Vocabulary
from tests.unit.tokenizer import tiny

REPLY = "client.inbox"
CALL = '<tool_call>{"name": "f", "arguments": {"a": "日本"}}</tool_call>'
ARGUMENTS = '{"a": "日本"}'


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return tiny.vocabulary(tiny.byte_level())


def answer(
    vocabulary: Vocabulary, text: str, finish: int = STOPPED, *, phase: Phase | None = None, stream: bool = True,
    only_one: bool = False, stop: list[str] | None = None,
) -> tuple[list[m.TextDelta], list[int]]:  # fmt: skip
    """Deltas of a text that comes a token at a time, and its ids."""
    table = StreamTable(Detokenizers(vocabulary), max_streams=1)
    request = m.GenerateRequest(
        "r", REPLY, text="p", stream=stream, return_logprob=True, sampling=SamplingParams(stop=stop or [])
    )
    opened = table.open(request)
    ids_of_calls = iter(("call_1", "call_2", "call_3"))
    reader = AnswerReader(
        None if phase is None else ReasoningReader(THINK, phase),
        CallScanner(HERMES.syntax, {"f": {}}, only_one=only_one),
        lambda: next(ids_of_calls),
    )
    opened.begin(Prompt([1], "p"), -1, reader)
    ids = vocabulary.encode(text, add_special_tokens=False)
    if finish == STOPPED:
        ids = [*ids, vocabulary.tokenizer.token_to_id("<|im_end|>")]
    deltas: list[m.TextDelta] = []
    for n, token_id in enumerate(ids, 1):
        batch = m.TokenBatch(
            "s", np.array([opened.handle], np.uint32), np.array([1], np.int32), np.array([n], np.int32),
            np.array([token_id], np.int32), np.array([finish if n == len(ids) else RUNNING], np.uint8),
            np.array([0], np.int32), logprobs=np.array([-float(n)], np.float32),
        )  # fmt: skip
        deltas += table.apply(batch).deltas[REPLY]
        if deltas and deltas[-1].finish_reason:
            break
    return deltas, ids


def calls_of(deltas: list[m.TextDelta]) -> list[tuple[str, str, str]]:
    calls: list[tuple[str, str, str]] = []
    for gain in (gain for delta in deltas for gain in delta.tool_calls or ()):
        if gain.index == len(calls):
            calls.append((gain.id, gain.name, gain.arguments))
        else:
            assert not gain.id
            assert not gain.name
            id_, name, arguments = calls[gain.index]
            calls[gain.index] = (id_, name, arguments + gain.arguments)
    return calls


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_split_and_its_ids_and_logprobs_stay_whole(vocabulary: Vocabulary, stream: bool) -> None:
    text = f"<think>\nHm?\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
    deltas, ids = answer(vocabulary, text, phase="possible", stream=stream)
    assert "".join(d.reasoning for d in deltas) == "Hm?"
    assert "".join(d.text for d in deltas) == "Let me see."
    assert calls_of(deltas) == [("call_1", "f", ARGUMENTS), ("call_2", "f", ARGUMENTS)]
    assert [i for d in deltas for i in d.token_ids] == ids
    assert [p.logprob for d in deltas for p in d.logprobs] == [-float(n) for n in range(1, len(ids) + 1)]
    assert [d.finish_reason for d in deltas][-1] == "tool_calls"
    assert len(deltas) == (len(ids) if stream else 1)


def test_arguments_stream_in_pieces(vocabulary: Vocabulary) -> None:
    deltas, _ = answer(vocabulary, CALL)
    gains = [gain for delta in deltas for gain in delta.tool_calls or ()]
    assert len(gains) > 3
    assert [g.name for g in gains] == ["f"] + [""] * (len(gains) - 1)


def test_an_answer_without_a_call_ends_as_it_would_without_tools(vocabulary: Vocabulary) -> None:
    deltas, _ = answer(vocabulary, "a <tool_call> that is none")
    assert "".join(d.text for d in deltas) == "a <tool_call> that is none"
    assert deltas[-1].finish_reason == "stop"


def test_a_call_that_is_cut_by_the_length_ends_with_length(vocabulary: Vocabulary) -> None:
    deltas, _ = answer(vocabulary, CALL[:-18], LENGTH)
    assert deltas[-1].finish_reason == "length"
    assert calls_of(deltas)[0][2] == ARGUMENTS[: len(calls_of(deltas)[0][2])]


def test_where_one_call_is_allowed_the_stream_ends_behind_it(vocabulary: Vocabulary) -> None:
    deltas, ids = answer(vocabulary, f"{CALL}\n{CALL}", only_one=True)
    assert calls_of(deltas) == [("call_1", "f", ARGUMENTS)]
    assert deltas[-1].finish_reason == "tool_calls"
    assert deltas[-1].completion_tokens < len(ids) - 5


def test_a_prompt_that_opened_the_reasoning_and_an_answer_cut_within_it(vocabulary: Vocabulary) -> None:
    deltas, _ = answer(vocabulary, "still thinking", LENGTH, phase="open")
    assert "".join(d.reasoning for d in deltas) == "still thinking"
    assert "".join(d.text for d in deltas) == ""
    assert deltas[-1].finish_reason == "length"


def test_a_stop_string_ends_the_text_before_it_is_read(vocabulary: Vocabulary) -> None:
    deltas, _ = answer(vocabulary, f"Yes. {CALL} END more", stop=["END"])
    assert calls_of(deltas) == [("call_1", "f", ARGUMENTS)]
    assert "".join(d.text for d in deltas) == "Yes."
    assert (deltas[-1].finish_reason, deltas[-1].matched_stop) == ("tool_calls", "END")

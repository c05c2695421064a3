"""Token batches in, text deltas out: no bus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.tokenizer.detokenizer import Detokenizers
from services.tokenizer.packets import pack
from services.tokenizer.prompt import Prompt
from services.tokenizer.streams import Outcome, StreamTable
from shared import messages as m
from shared import wire
from shared.errors import InvalidRequest, Overloaded
from shared.messages.generation import ABORTED, LENGTH, RUNNING, STOPPED
from shared.sampling import SamplingParams
from shared.vocabulary import Vocabulary
from tests.unit.tokenizer import tiny

REPLY = "client.inbox"
NAN = float("nan")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return tiny.vocabulary(tiny.byte_level())


@pytest.fixture
def table(vocabulary: Vocabulary) -> StreamTable:
    return StreamTable(Detokenizers(vocabulary), max_streams=8)


def opened(table: StreamTable, rid: str = "r", prompt: Prompt | None = None, start: int = -1, **fields: Any) -> int:
    """Register a stream and return its handle."""
    sampling = {k: fields.pop(k) for k in list(fields) if k in SamplingParams.__dataclass_fields__}
    request = m.GenerateRequest(rid, REPLY, text="p", sampling=SamplingParams(**sampling), **fields)
    stream = table.open(request)
    stream.begin(prompt or Prompt([1, 2, 3], "p"), start)
    return stream.handle


def batch(*entries: tuple[int, list[int], int, int], cached: int = -1, **arrays: Any) -> m.TokenBatch:
    """Entries of (handle, tokens, total, finish)."""
    return m.TokenBatch(
        scheduler_id="s-1",
        handles=np.array([e[0] for e in entries], np.uint32),
        counts=np.array([len(e[1]) for e in entries], np.int32),
        totals=np.array([e[2] for e in entries], np.int32),
        tokens=np.array([t for e in entries for t in e[1]], np.int32),
        finish=np.array([e[3] for e in entries], np.uint8),
        cached_tokens=np.full(len(entries), cached, np.int32),
        **arrays,
    )


def feed(table: StreamTable, handle: int, ids: list[int], finish: int = LENGTH) -> list[m.TextDelta]:
    """One token per batch, the last with a finish code; stops when the stream has ended."""
    deltas = []
    for n, token_id in enumerate(ids, 1):
        out = table.apply(batch((handle, [token_id], n, finish if n == len(ids) else RUNNING)))
        deltas += out.deltas[REPLY]
        if deltas and deltas[-1].finish_reason:
            break
    return deltas


def text_of(deltas: list[m.TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def ids_of(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.encode(text, add_special_tokens=False)


def test_a_stream_gets_a_delta_per_step_numbered_from_zero_with_the_prompts_facts_first(
    table: StreamTable, vocabulary: Vocabulary
) -> None:
    handle = opened(table)
    ids = ids_of(vocabulary, "The quick 日本 fox 😀!")
    first = table.apply(batch((handle, ids[:1], 1, RUNNING), cached=2)).deltas[REPLY]
    assert first[0].prompt == m.PromptInfo(prompt_tokens=3, cached_tokens=2)
    rest = [
        delta
        for n, i in enumerate(ids[1:], 2)
        for delta in table.apply(batch((handle, [i], n, LENGTH if n == len(ids) else RUNNING))).deltas[REPLY]
    ]
    deltas = first + rest
    assert text_of(deltas) == "The quick 日本 fox 😀!"
    assert [delta.seq for delta in deltas] == list(range(len(ids)))
    assert [i for delta in deltas for i in delta.token_ids] == ids
    assert [delta.completion_tokens for delta in deltas] == list(range(1, len(ids) + 1))
    assert [delta.prompt for delta in rest] == [None] * len(rest)
    assert [delta.finish_reason for delta in deltas] == [None] * (len(ids) - 1) + ["length"]
    assert len(table) == 0


def test_all_deltas_of_a_step_for_one_reply_come_together(table: StreamTable) -> None:
    handles = [opened(table, f"r{i}") for i in range(3)]
    out = table.apply(batch(*((h, [50], 1, RUNNING) for h in handles)))
    assert [delta.rid for delta in out.deltas[REPLY]] == ["r0", "r1", "r2"]
    assert out.tokens == 3


def test_a_request_that_does_not_stream_gets_one_delta_at_the_end(table: StreamTable, vocabulary: Vocabulary) -> None:
    handle = opened(table, stream=False)
    ids = ids_of(vocabulary, "The lazy dog")
    (delta,) = feed(table, handle, ids)
    assert (delta.text, delta.token_ids, delta.seq, delta.finish_reason) == ("The lazy dog", ids, 0, "length")


def test_the_text_of_an_eos_token_is_left_out_but_its_id_is_there(table: StreamTable, vocabulary: Vocabulary) -> None:
    eos = vocabulary.tokenizer.token_to_id("<|im_end|>")
    deltas = feed(table, opened(table, skip_special_tokens=False), [*ids_of(vocabulary, "fox"), eos], STOPPED)
    assert text_of(deltas) == "fox"
    assert deltas[-1].token_ids[-1] == eos
    assert (deltas[-1].finish_reason, deltas[-1].matched_stop) == ("stop", None)
    assert deltas[-1].completion_tokens == len(ids_of(vocabulary, "fox")) + 1


def test_a_stop_token_that_was_asked_for_is_named(table: StreamTable, vocabulary: Vocabulary) -> None:
    (stop,) = ids_of(vocabulary, "!")
    deltas = feed(table, opened(table, stop_token_ids=[stop]), [*ids_of(vocabulary, "fox"), stop], STOPPED)
    assert (text_of(deltas), deltas[-1].matched_stop) == ("fox", stop)


def test_a_stop_token_can_stay_in_the_text(table: StreamTable, vocabulary: Vocabulary) -> None:
    (stop,) = ids_of(vocabulary, "!")
    handle = opened(table, stop_token_ids=[stop], include_stop_str_in_output=True)
    assert text_of(feed(table, handle, [*ids_of(vocabulary, "fox"), stop], STOPPED)) == "fox!"


def test_an_eos_that_did_not_finish_the_request_is_an_ordinary_token(
    table: StreamTable, vocabulary: Vocabulary
) -> None:
    eos = vocabulary.tokenizer.token_to_id("<|im_end|>")
    handle = opened(table, ignore_eos=True, skip_special_tokens=False)
    assert text_of(feed(table, handle, [eos, *ids_of(vocabulary, "fox")])) == "<|im_end|>fox"


def test_a_stop_string_ends_the_stream_and_the_scheduler_is_told(table: StreamTable, vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "The quick brown fox jumps")
    handle = opened(table, stop=["brown"])
    deltas: list[m.TextDelta] = []
    for n, i in enumerate(ids, 1):
        out = table.apply(batch((handle, [i], n, RUNNING)))
        deltas += out.deltas[REPLY]
        if out.aborts:
            break
    assert out.aborts == {"s-1": [handle]}
    assert text_of(deltas) == "The quick "
    assert (deltas[-1].finish_reason, deltas[-1].matched_stop) == ("stop", "brown")
    assert deltas[-1].completion_tokens == n < len(ids)
    assert table.apply(batch((handle, [5], n + 1, RUNNING))) == Outcome()


def test_tokens_behind_a_stop_string_in_the_same_batch_are_dropped(table: StreamTable, vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "a + b  # sum")
    handle = opened(table, stop=["+"])
    out = table.apply(batch((handle, ids, len(ids), LENGTH)))
    (delta,) = out.deltas[REPLY]
    assert (delta.text, delta.finish_reason, delta.matched_stop) == ("a ", "stop", "+")
    assert vocabulary.decode(delta.token_ids, skip_special_tokens=True) == "a +"
    assert delta.completion_tokens == len(delta.token_ids)
    assert not out.aborts, "the scheduler has ended it already"


def test_text_held_for_a_stop_string_comes_with_the_last_delta(table: StreamTable, vocabulary: Vocabulary) -> None:
    deltas = feed(table, opened(table, stop=["dogma"]), ids_of(vocabulary, "lazy dog"))
    assert text_of(deltas) == "lazy dog"
    assert deltas[-1].finish_reason == "length"


def test_half_a_character_comes_out_as_replacement_only_at_the_end(table: StreamTable, vocabulary: Vocabulary) -> None:
    first, *_ = (i for i in range(vocabulary.size) if Detokenizers(vocabulary).token_bytes(i) == b"\xf0")
    deltas = feed(table, opened(table), [first, first])
    assert [delta.text for delta in deltas] == ["", "\ufffd\ufffd"]


def test_an_aborted_request_gets_its_last_delta(table: StreamTable) -> None:
    handle = opened(table)
    assert table.ask_abort(["r", "unknown"]) == {}
    table.apply(batch((handle, [50], 1, RUNNING)))
    assert table.ask_abort(["r"]) == {"s-1": [handle]}
    (delta,) = table.apply(batch((handle, [], 1, ABORTED))).deltas[REPLY]
    assert (delta.finish_reason, delta.token_ids, delta.completion_tokens) == ("abort", [], 1)
    assert len(table) == 0


def test_lost_tokens_end_the_request_with_an_error_and_free_the_scheduler(table: StreamTable) -> None:
    handle = opened(table)
    table.apply(batch((handle, [50], 1, RUNNING)))
    out = table.apply(batch((handle, [51], 3, RUNNING)))
    (delta,) = out.deltas[REPLY]
    assert delta.finish_reason == "error"
    assert delta.error is not None
    assert delta.error.code == "unavailable"
    assert out.aborts == {"s-1": [handle]}
    assert len(table) == 0


def test_an_error_of_the_scheduler_is_the_last_delta(table: StreamTable) -> None:
    handle = opened(table)
    error = m.ErrorInfo("deadline_exceeded", "too late")
    out = table.apply(batch(errors=[m.TokenError(handle, error), m.TokenError(99, error)]))
    (delta,) = out.deltas[REPLY]
    assert (delta.finish_reason, delta.error) == ("error", error)
    assert len(table) == 0


def test_batches_of_unknown_handles_are_ignored_and_do_not_shift_their_neighbours(
    table: StreamTable, vocabulary: Vocabulary
) -> None:
    handle = opened(table)
    (fox,) = ids_of(vocabulary, "fox")[:1]
    (delta,) = table.apply(batch((77, [50, 51], 9, RUNNING), (handle, [fox], 1, RUNNING))).deltas[REPLY]
    assert delta.token_ids == [fox]


def test_prompt_logprobs_gather_over_batches_until_the_first_token(table: StreamTable, vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "The dog")
    handle = opened(table, prompt=Prompt(ids, "The dog"), start=0, return_logprob=True, top_logprobs_num=1, echo=True)
    total = len(ids)
    for i in range(total):
        arrays = {
            "prompt_counts": np.array([1], np.int32),
            "prompt_logprobs": np.array([NAN if i == 0 else -i], np.float32),
            "prompt_top_ids": np.array([[-1, -1] if i == 0 else [ids[i], 5]], np.int32),
            "prompt_top_logprobs": np.array([[NAN, NAN] if i == 0 else [-i, -9]], np.float32),
        }
        assert not table.apply(batch((handle, [], 0, RUNNING), cached=0 if i == 0 else -1, **arrays)).deltas
    (delta,) = table.apply(batch((handle, [50], 1, LENGTH), logprobs=np.array([-0.5], np.float32))).deltas[REPLY]
    assert delta.prompt is not None
    assert delta.prompt.text == "The dog"
    assert [entry.token_id for entry in delta.prompt.logprobs] == ids
    assert "".join(entry.token for entry in delta.prompt.logprobs) == "The dog"
    assert [entry.logprob for entry in delta.prompt.logprobs] == [None, *(-float(i) for i in range(1, total))]
    assert delta.prompt.logprobs[0].top == []
    assert [top.token_id for top in delta.prompt.logprobs[1].top] == [ids[1]]


def test_logprobs_name_their_tokens_in_text_and_bytes(table: StreamTable, vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "😀")
    handle = opened(table, return_logprob=True, top_logprobs_num=2)
    arrays = {
        "logprobs": np.full(len(ids), -0.25, np.float32),
        "top_ids": np.array([[i, 40, 41] for i in ids], np.int32),
        "top_logprobs": np.array([[-0.25, -2, -3]] * len(ids), np.float32),
    }
    (delta,) = table.apply(batch((handle, ids, len(ids), LENGTH), **arrays)).deltas[REPLY]
    assert bytes(b for entry in delta.logprobs for b in entry.bytes).decode() == "😀"
    assert [len(entry.top) for entry in delta.logprobs] == [2] * len(ids)
    assert delta.logprobs[0].logprob == -0.25


def test_logprobs_of_others_in_the_batch_stay_with_them(table: StreamTable) -> None:
    with_, without = opened(table, "a", return_logprob=True), opened(table, "b")
    out = table.apply(batch((with_, [50], 1, RUNNING), (without, [51], 1, RUNNING), logprobs=np.array([-1, NAN], "f4")))
    first, second = out.deltas[REPLY]
    assert [entry.token_id for entry in first.logprobs] == [50]
    assert second.logprobs == []


def test_logprobs_end_with_the_token_that_completed_a_stop_string(table: StreamTable, vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "a + b  # sum")
    handle = opened(table, stop=["+"], return_logprob=True)
    (delta,) = table.apply(batch((handle, ids, len(ids), RUNNING), logprobs=np.full(len(ids), -1, np.float32))).deltas[
        REPLY
    ]
    assert [entry.token_id for entry in delta.logprobs] == delta.token_ids


def test_a_probability_of_zero_is_a_number_that_json_has(table: StreamTable) -> None:
    handle = opened(table, return_logprob=True, top_logprobs_num=1)
    arrays = {"top_ids": np.array([[50]], np.int32), "top_logprobs": np.array([[-np.inf]], np.float32)}
    out = table.apply(batch((handle, [50], 1, LENGTH), logprobs=np.array([-np.inf], np.float32), **arrays))
    (packet,) = pack(out.deltas[REPLY], 10_000).data
    (entry,) = wire.decode(m.TextDeltas, packet).deltas[0].logprobs
    assert (entry.logprob, entry.top[0].logprob) == (-9999.0, -9999.0)


def test_stop_strings_do_not_end_a_request_before_its_least_tokens(table: StreamTable, vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "a + b + c")
    plus = next(n for n in range(1, len(ids)) if "+" in vocabulary.decode(ids[:n], skip_special_tokens=True))
    deltas = feed(table, opened(table, stop=["+"], min_new_tokens=plus, max_new_tokens=50), ids)
    assert (text_of(deltas), deltas[-1].matched_stop) == ("a + b ", "+")


def test_a_prompt_only_request_ends_with_the_prompts_facts(table: StreamTable) -> None:
    handle = opened(table, max_new_tokens=0)
    (delta,) = table.apply(batch((handle, [], 0, LENGTH), cached=1)).deltas[REPLY]
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("", [], "length")
    assert delta.prompt == m.PromptInfo(3, 1)


def test_the_table_is_bounded_and_a_rid_runs_once(table: StreamTable) -> None:
    opened(table, "twice")
    with pytest.raises(InvalidRequest, match="already running"):
        opened(table, "twice")
    for i in range(7):
        opened(table, f"r{i}")
    with pytest.raises(Overloaded):
        opened(table, "one too many")


def test_deltas_are_split_over_messages_that_fit() -> None:
    deltas = [m.TextDelta(f"r{i}", 0, "x" * 300) for i in range(20)]
    packets = pack(deltas, 1000)
    assert all(len(data) <= 1000 for data in packets.data)
    back = [delta for data in packets.data for delta in wire.decode(m.TextDeltas, data).deltas]
    assert back == deltas
    assert packets.refused_rids == []


def test_a_delta_that_fits_no_message_becomes_an_error() -> None:
    packets = pack([m.TextDelta("small", 0, "x"), m.TextDelta("big", 4, "x" * 5000)], 1000)
    last = wire.decode(m.TextDeltas, packets.data[-1]).deltas[0]
    assert (last.rid, last.seq, last.finish_reason) == ("big", 4, "error")
    assert packets.refused_rids == ["big"]

"""Requests on their way through the service: encoded, queued, answered, refused, lost, drained."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared import messages as m
from shared.bus import Bus, LocalBus
from shared.errors import (
    Aborted,
    ContextLengthExceeded,
    InvalidRequest,
    Overloaded,
    RhizomeError,
    Unavailable,
)
from shared.messages.generation import ABORTED, LENGTH
from shared.sampling import SamplingParams
from tests.unit.tokenizer import tiny
from tests.unit.tokenizer.service_stack import TEMPLATE, Stack, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny-model", chat_template=TEMPLATE)


@pytest.fixture
async def stack(folder: Path, bus: Bus) -> AsyncIterator[Stack]:
    async for built in build(folder, bus):
        yield built


@pytest.fixture
async def local(folder: Path) -> AsyncIterator[Stack]:
    async for built in build(folder, LocalBus(), max_streams=2):
        yield built


async def test_a_text_request_is_encoded_queued_and_answered_in_deltas(stack: Stack) -> None:
    accepted = await stack.client.generate(text="The dog", sampling=SamplingParams(top_p=0.5))
    request = await stack.scheduler.requests.get()
    ids = stack.ids("The dog")
    assert accepted == m.Accepted("r", stack.actor.id, stack.scheduler.id, len(ids))
    assert request.input_ids.tolist() == ids
    assert request.eos_token_ids == stack.ids("<|im_end|>")
    assert request.sampling.max_new_tokens == 128 - len(ids)
    assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 0.5)
    answer = stack.ids(" jumps over")
    await stack.scheduler.say(request.handle, answer[:-1], len(answer) - 1)
    await stack.scheduler.say(request.handle, answer[-1:], len(answer), LENGTH)
    first, last = await stack.client.deltas.get(), await stack.client.deltas.get()
    assert first.text + last.text == " jumps over"
    assert (first.finish_reason, last.finish_reason) == (None, "length")


async def test_a_chat_is_rendered_without_a_second_bos(stack: Stack) -> None:
    chat = m.ChatInput([{"role": "user", "content": "The dog"}])
    await stack.client.generate(chat=chat, echo=True)
    request = await stack.scheduler.requests.get()
    rendered = "<|im_start|>user: The dog\nassistant:"
    assert request.input_ids.tolist() == stack.ids(rendered)
    await stack.scheduler.say(request.handle, [], 0, LENGTH)
    delta = await stack.client.ending()
    assert delta.prompt is not None
    assert delta.prompt.text == rendered


async def test_tokens_that_come_before_the_answer_are_not_lost(stack: Stack) -> None:
    stack.scheduler.early = [[i] for i in stack.ids("fox jumps")]
    stack.scheduler.hold.clear()
    asking = asyncio.ensure_future(stack.client.generate())
    deltas = [await stack.client.deltas.get() for _ in stack.scheduler.early]
    stack.scheduler.hold.set()
    await asking
    assert "".join(delta.text for delta in deltas) == "fox jumps"


async def test_a_stop_string_frees_the_row_at_the_scheduler(stack: Stack) -> None:
    await stack.client.generate(sampling=SamplingParams(stop=["dog"]))
    request = await stack.scheduler.requests.get()
    ids = stack.ids("lazy dog")
    await stack.scheduler.say(request.handle, ids, len(ids))
    assert (await stack.client.ending()).matched_stop == "dog"
    assert await stack.scheduler.aborts.get() == m.AbortHandles(stack.actor.id, [request.handle], silent=True)


async def test_an_abort_goes_to_the_scheduler_and_the_last_delta_follows_its_answer(stack: Stack) -> None:
    await stack.client.generate()
    request = await stack.scheduler.requests.get()
    await stack.client.actor.send(stack.actor.subjects.tokenizer_abort(stack.actor.id), m.Abort(["r", "other"]))
    assert await stack.scheduler.aborts.get() == m.AbortHandles(stack.actor.id, [request.handle])
    await stack.scheduler.say(request.handle, [], 0, ABORTED)
    assert (await stack.client.ending()).finish_reason == "abort"


async def test_an_abort_that_comes_before_the_scheduler_is_known_is_passed_on_later(local: Stack) -> None:
    local.scheduler.hold.clear()
    asking = asyncio.ensure_future(local.client.generate())
    request = await local.scheduler.requests.get()
    subject = local.actor.subjects.tokenizer_abort(local.actor.id)
    await local.client.actor.send(subject, m.Abort(["r"]))
    await local.client.actor.ask(local.actor.subjects.detokenize, m.Detokenize([5]), m.Text)  # the abort was read
    local.scheduler.hold.set()
    await asking
    assert (await local.scheduler.aborts.get()).handles == [request.handle]


async def test_the_schedulers_refusal_reaches_the_sender_and_frees_the_rid(stack: Stack) -> None:
    stack.scheduler.refusal = Overloaded("queue is full")
    with pytest.raises(Overloaded, match="queue is full"):
        await stack.client.generate()
    stack.scheduler.refusal = None
    await stack.client.generate()


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"rid": ""}, InvalidRequest, "rid"),
        ({"rid": "a\nb"}, InvalidRequest, "rid"),
        ({"rid": "x" * 129}, InvalidRequest, "rid"),
        ({"reply": "rz.v1.other.scheduler.schedule"}, InvalidRequest, "reserved"),
        ({"reply": "a.*"}, InvalidRequest, "reply"),
        ({"text": "a", "input_ids": [1]}, InvalidRequest, "exactly one"),
        ({"text": ""}, InvalidRequest, "empty"),
        ({"input_ids": []}, InvalidRequest, "empty"),
        ({"input_ids": [-1]}, InvalidRequest, "-1 is outside"),
        ({"input_ids": [10**6]}, InvalidRequest, "1000000 is outside"),
        ({"input_ids": [2**63]}, InvalidRequest, "outside"),
        ({"input_ids": [5] * 128}, ContextLengthExceeded, "128 tokens but the context is 128"),
        ({"text": "Ü!" * 1000}, ContextLengthExceeded, "the context is 128"),
        ({"text": "dog" * 2000}, ContextLengthExceeded, "6,000 characters"),
        ({"chat": m.ChatInput([])}, InvalidRequest, "messages"),
        ({"top_logprobs_num": 21}, InvalidRequest, "top_logprobs"),
        ({"logprob_start_len": 99}, InvalidRequest, "logprob_start_len"),
        ({"timeout_s": -1.0}, InvalidRequest, "timeout_s"),
        ({"sampling": SamplingParams(temperature=-1)}, InvalidRequest, "temperature"),
        ({"sampling": SamplingParams(stop_token_ids=[10**6])}, InvalidRequest, "stop token id"),
        ({"sampling": SamplingParams(logit_bias={"999999": 1.0})}, InvalidRequest, "logit_bias"),
        ({"chat": m.ChatInput([{"role": "user", "content": 5}])}, InvalidRequest, "content"),
    ],
)
async def test_bad_requests_are_refused_with_the_reason(
    local: Stack, fields: dict[str, Any], error: type[RhizomeError], match: str
) -> None:
    with pytest.raises(error, match=match):
        await local.client.generate(**fields)
    await local.client.generate(rid="next")
    assert local.scheduler.requests.qsize() == 1


async def test_a_running_rid_is_refused_and_the_table_is_bounded(local: Stack) -> None:
    await local.client.generate(rid="a")
    with pytest.raises(InvalidRequest, match="already running"):
        await local.client.generate(rid="a")
    await local.client.generate(rid="b")
    with pytest.raises(Overloaded):
        await local.client.generate(rid="c")


async def test_lengths_are_clipped_to_the_context_and_zero_stays_zero(local: Stack) -> None:
    await local.client.generate(rid="a", input_ids=[5] * 100, sampling=SamplingParams(max_new_tokens=100))
    assert (await local.scheduler.requests.get()).sampling.max_new_tokens == 28
    await local.client.generate(rid="b", sampling=SamplingParams(max_new_tokens=0))
    assert (await local.scheduler.requests.get()).sampling.max_new_tokens == 0


async def test_streams_of_a_lost_scheduler_end_with_an_error_at_once(local: Stack) -> None:
    events = local.actor.subjects
    await local.client.actor.send(events.heartbeat, local.beat("scheduler", local.scheduler.id))
    await local.client.generate()
    await local.client.actor.send(events.goodbye, m.Goodbye("scheduler", "", local.scheduler.id, time.time(), "killed"))
    delta = await local.client.ending()
    assert delta.error is not None
    assert (delta.finish_reason, delta.error.code) == ("error", "unavailable")
    assert "killed" in delta.error.message


async def test_a_scheduler_that_answers_after_it_was_lost_does_not_leave_the_stream_waiting(local: Stack) -> None:
    events = local.actor.subjects
    await local.client.actor.send(events.heartbeat, local.beat("scheduler", local.scheduler.id))
    local.scheduler.hold.clear()
    asking = asyncio.ensure_future(local.client.generate())
    await local.scheduler.requests.get()
    await local.client.actor.send(events.goodbye, m.Goodbye("scheduler", "", local.scheduler.id, time.time()))
    await local.client.actor.ask(events.detokenize, m.Detokenize([5]), m.Text)  # the goodbye was read
    local.scheduler.hold.set()
    await asking
    assert (await local.client.ending()).finish_reason == "error"


async def test_requests_of_a_lost_gateway_are_dropped_and_their_rows_freed(local: Stack) -> None:
    subjects, gateway = local.actor.subjects, "gateway-0-abcdef"
    await local.client.actor.send(subjects.heartbeat, local.beat("gateway", gateway))
    await local.client.generate(rid="gone", reply=subjects.gateway_deltas(gateway))
    request = await local.scheduler.requests.get()
    await local.client.generate(rid="stays")
    await local.client.actor.send(subjects.goodbye, m.Goodbye("gateway", "", gateway, time.time()))
    assert await local.scheduler.aborts.get() == m.AbortHandles(local.actor.id, [request.handle], silent=True)
    await local.client.generate(rid="gone")  # its place is free again
    with pytest.raises(InvalidRequest, match="already running"):
        await local.client.generate(rid="stays")


async def test_without_a_scheduler_the_sender_hears_it_at_once(folder: Path) -> None:
    async for stack in build(folder, LocalBus()):
        await stack.scheduler.actor.leave_queues()
        with pytest.raises(Unavailable):
            await stack.client.generate()


async def test_tokenize_and_detokenize_undo_each_other(stack: Stack) -> None:
    subjects, ask = stack.actor.subjects, stack.client.actor.ask
    for text in ("The dog 😀", "long text " * 400):
        tokens = await ask(subjects.tokenize, m.Tokenize(text=text), m.Tokens)
        assert tokens == m.Tokens(stack.ids(text), 128)
        assert (await ask(subjects.detokenize, m.Detokenize(tokens.token_ids), m.Text)).text == text
    chat = m.ChatInput([{"role": "user", "content": "x"}])
    tokens = await ask(subjects.tokenize, m.Tokenize(chat=chat), m.Tokens)
    assert tokens.token_ids == stack.ids("<|im_start|>user: x\nassistant:")
    with pytest.raises(InvalidRequest, match="exactly one"):
        await ask(subjects.tokenize, m.Tokenize(), m.Tokens)
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        await ask(subjects.detokenize, m.Detokenize([10**7]), m.Text)


async def test_draining_takes_no_new_requests_and_lets_running_ones_finish(local: Stack) -> None:
    await local.client.generate()
    request = await local.scheduler.requests.get()
    draining = asyncio.ensure_future(local.service.drain())
    for _ in range(2):  # it begins, then every subscription is left at once
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await local.client.generate(rid="late")
    assert not draining.done()
    ids = local.ids("fox")
    await local.scheduler.say(request.handle, ids, len(ids), LENGTH)
    assert (await local.client.ending()).text == "fox"
    await draining


async def test_a_drain_that_is_cut_short_tells_the_senders(local: Stack) -> None:
    await local.client.generate()
    draining = asyncio.ensure_future(local.service.drain())
    await asyncio.sleep(0)  # let it begin
    draining.cancel()
    delta = await local.client.ending()
    assert delta.error is not None
    assert delta.error.code == "unavailable"


async def test_a_request_aborted_while_it_is_encoded_never_reaches_a_scheduler(local: Stack) -> None:
    gate = threading.Event()
    blocking = asyncio.ensure_future(local.encoder.run(10**6, lambda: gate.wait(60)))  # the only thread is busy
    asking = asyncio.ensure_future(local.client.generate(text=tiny.LONG_TOKEN * 20))
    await asyncio.sleep(0)  # let it send
    with pytest.raises(InvalidRequest, match="already running"):  # so it was taken
        await local.client.generate(text="x")
    await local.client.actor.send(local.actor.subjects.tokenizer_abort(local.actor.id), m.Abort(["r"]))
    await local.client.actor.ask(local.actor.subjects.detokenize, m.Detokenize([5]), m.Text)  # the abort was read
    gate.set()
    with pytest.raises(Aborted):
        await asking
    await blocking
    assert local.scheduler.requests.empty()


async def test_long_prompts_wait_in_a_bounded_queue_while_short_ones_pass(local: Stack) -> None:
    gate = threading.Event()
    waiting = [asyncio.ensure_future(local.encoder.run(10**6, lambda: gate.wait(60))) for _ in range(2)]
    with pytest.raises(Overloaded, match="long prompts"):
        await local.client.generate(text=tiny.LONG_TOKEN * 20)
    await local.client.generate(text="x")
    gate.set()
    await asyncio.gather(*waiting)
    await local.client.generate(rid="later", text=tiny.LONG_TOKEN * 20)


async def test_the_facts_a_gateway_needs_are_announced(stack: Stack, folder: Path) -> None:
    vocab_size = tiny.byte_level().get_vocab_size() + 3
    facts = replace(stack.actor.facts, created_s=0)
    assert facts == m.ServiceFacts("tiny-model", 128, vocab_size, 0)
    assert stack.actor.state == "ready"


async def test_metrics_count_streams_and_tokens(local: Stack) -> None:
    await local.client.generate()
    request = await local.scheduler.requests.get()
    await local.scheduler.say(request.handle, local.ids("fox"), len(local.ids("fox")))
    await local.client.deltas.get()
    value = local.actor.registry.get_sample_value
    assert value("rhizome_num_streams") == 1
    assert value("rhizome_detokenized_tokens_total") == len(local.ids("fox"))
    assert value("rhizome_encode_seconds_count") == 1

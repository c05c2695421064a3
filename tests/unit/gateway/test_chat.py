"""POST /v1/chat/completions: what reaches the tokenizer and what comes back."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from services.gateway.config import GatewayConfig
from shared import messages as m
from tests.unit.gateway.deployment import MODEL, Deployment, Script, deployed, eventually

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


async def test_an_answer_has_openai_s_shape(gw: Deployment) -> None:
    status, body = await gw.post(CHAT, {**HI, "model": MODEL})
    assert status == 200
    rid = gw.tokenizer.requests[0].rid
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "id": f"chatcmpl-{rid}",
        "object": "chat.completion",
        "model": MODEL,
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": 'Hello "world" é', "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 4, "image_tokens": 0},
        },
    }


async def test_every_sampling_field_reaches_the_tokenizer(gw: Deployment) -> None:
    fields = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "repetition_penalty": 1.1, "logit_bias": {"5": -100}, "seed": 42,
        "stop": "END", "stop_token_ids": [3], "min_tokens": 2, "ignore_eos": True, "skip_special_tokens": False,
        "include_stop_str_in_output": True,
    }  # fmt: skip
    status, _ = await gw.post(CHAT, {**HI, **fields, "priority": 3, "cache_salt": "tenant", "timeout_s": 5})
    assert status == 200
    sent = gw.tokenizer.requests[0]
    expected = {**fields, "max_new_tokens": 9, "min_new_tokens": 2, "stop": ["END"]}
    assert {name: getattr(sent.sampling, name) for name in expected if name not in ("max_tokens", "min_tokens")} == {
        name: value for name, value in expected.items() if name not in ("max_tokens", "min_tokens")
    }
    assert (sent.priority, sent.cache_salt, sent.timeout_s, sent.stream) == (3, "tenant", 5.0, False)
    assert sent.chat is not None
    assert sent.chat.messages == HI["messages"]
    assert sent.chat.add_generation_prompt


async def test_message_fields_pass_through_to_the_template(gw: Deployment) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "bob"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "assistant", "content": "The answer"},
    ]
    body = {"messages": messages, "continue_final_message": True, "chat_template_kwargs": {"thinking": False}}
    status, _ = await gw.post(CHAT, body)
    assert status == 200
    chat = gw.tokenizer.requests[0].chat
    assert chat is not None
    assert chat.messages == [{k: v for k, v in message.items() if v is not None} for message in messages]
    assert chat.continue_final_message
    assert not chat.add_generation_prompt
    assert chat.template_kwargs == {"thinking": False}


async def test_a_stream_opens_with_the_role_and_ends_with_reason_usage_and_done(gw: Deployment) -> None:
    events = await gw.events(CHAT, {**HI, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, usage, done = events
    assert done == "[DONE]"
    assert all(isinstance(c, dict) and c["object"] == "chat.completion.chunk" for c in [*chunks, usage])
    assert all(isinstance(c, dict) and c["usage"] is None for c in chunks)
    choices = [c["choices"][0] for c in chunks]
    assert choices[0] == {
        "index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None,
    }  # fmt: skip
    assert [c["delta"]["content"] for c in choices[1:-1]] == ["Hel", "lo", ' "world" é']
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert isinstance(usage, dict)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 4, "image_tokens": 0}
    assert usage["usage"]["total_tokens"] == 10


async def test_without_include_usage_chunks_have_no_usage_field(gw: Deployment) -> None:
    events = await gw.events(CHAT, {**HI, "stream": True})
    assert not any(isinstance(e, dict) and "usage" in e for e in events)
    assert isinstance(events[-2], dict)
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


async def test_choices_get_their_own_rid_and_seed_and_share_the_prompt_in_usage(gw: Deployment) -> None:
    status, body = await gw.post(CHAT, {**HI, "n": 3, "seed": 10, "rid": "mine"})
    assert status == 200
    assert [r.rid for r in gw.tokenizer.requests] == ["mine-0", "mine-1", "mine-2"]
    assert [r.sampling.seed for r in gw.tokenizer.requests] == [10, 11, 12]
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert body["id"] == "chatcmpl-mine"
    assert body["usage"]["prompt_tokens"] == 7
    assert body["usage"]["completion_tokens"] == 9


async def test_streamed_choices_carry_their_index(gw: Deployment) -> None:
    events = await gw.events(CHAT, {**HI, "n": 2, "stream": True})
    texts = {0: "", 1: ""}
    for e in events[:-1]:
        choice = e["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: 'Hello "world" é', 1: 'Hello "world" é'}


async def test_logprobs_and_top_logprobs_have_openai_s_shape(gw: Deployment) -> None:
    asked = {**HI, "logprobs": True, "top_logprobs": 2}
    _, body = await gw.post(CHAT, asked)
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    first = logprobs["content"][0]
    assert first["token"] == "Hel"
    assert first["logprob"] == -0.5
    assert bytes(first["bytes"]).decode() == "Hel"
    assert [t["token"] for t in first["top_logprobs"]] == ["Hel", "alt1"]
    streamed = [e["choices"][0]["logprobs"] for e in (await gw.events(CHAT, {**asked, "stream": True}))[1:-2]]
    assert [c for s in streamed for c in s["content"]] == logprobs["content"]


async def test_deltas_that_overtake_the_answer_are_not_lost(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(before_accepted=True)
    events = await gw.events(CHAT, {**HI, "stream": True})
    assert [e["choices"][0]["delta"].get("content") for e in events[1:-2]] == ["Hel", "lo", ' "world" é']


async def test_a_missing_delta_ends_the_request_with_503(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(seqs=[1, 2, 3, 4])
    status, body = await gw.post(CHAT, {**HI, "stream": True})
    assert (status, body["error"]["code"]) == (503, "unavailable")


async def test_a_missing_delta_after_the_first_byte_is_an_error_event(gw: Deployment) -> None:
    gate = asyncio.Event()
    gw.tokenizer.script = lambda _: Script(gate=gate, seqs=[0, 2, 3, 4])
    async with gw.session.post(gw.url + CHAT, json={**HI, "stream": True}) as response:
        assert response.status == 200
        await response.content.readany()
        gate.set()
        tail = await response.content.read()
    assert b'data: {"error":{"message":"part of the answer was lost' in tail
    assert b'"code":"unavailable"' in tail
    assert b"[DONE]" not in tail
    await gw.tokenizer.abort_seen.wait()


async def test_a_client_that_goes_away_aborts_its_generation(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(gate=asyncio.Event())
    async with gw.session.post(gw.url + CHAT, json={**HI, "stream": True}) as response:
        await response.content.readany()
        response.close()
    await gw.tokenizer.abort_seen.wait()
    assert gw.tokenizer.aborted == [gw.tokenizer.requests[0].rid]
    assert len(gw.service.table) == 0


async def test_a_client_that_goes_away_before_the_answer_aborts_too(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(silent=True)
    task = asyncio.create_task(gw.post(CHAT, HI))
    await eventually(lambda: bool(gw.tokenizer.requests))
    task.cancel()
    await gw.tokenizer.abort_seen.wait()
    assert gw.tokenizer.aborted == [gw.tokenizer.requests[0].rid]


async def test_a_client_that_reads_too_slowly_is_dropped_not_buffered() -> None:
    big = "x" * 200_000
    async with deployed(GatewayConfig(max_queued_deltas=20)) as gw:
        gw.tokenizer.script = lambda _: Script(pieces=[big] * 400)
        async with gw.session.post(gw.url + CHAT, json={**HI, "stream": True}):
            await gw.tokenizer.abort_seen.wait()  # nothing was read
        assert len(gw.service.table) == 0


async def test_losing_the_tokenizer_or_the_scheduler_ends_its_requests_at_once(gw: Deployment) -> None:
    actor = gw.service.actor
    for service, instance in (("tokenizer", gw.tokenizer.actor.id), ("scheduler", gw.tokenizer.scheduler_id)):
        gw.tokenizer.script = lambda _: Script(gate=asyncio.Event())
        async with gw.session.post(gw.url + CHAT, json={**HI, "stream": True}) as response:
            await response.content.readany()
            bye = m.Goodbye(service, instance.rsplit("-", 1)[0], instance, 0.0, "killed")
            await actor.send(actor.subjects.goodbye, bye)
            assert b'"code":"unavailable"' in await response.content.read()
        await gw.tokenizer.actor.beat()


async def test_an_error_in_the_stream_before_the_first_byte_is_a_status(gw: Deployment) -> None:
    error = m.ErrorInfo("deadline_exceeded", "waited too long")
    gw.tokenizer.script = lambda _: Script(
        pieces=[], finish=m.TextDelta("", 0, finish_reason="error", error=error)
    )  # fmt: skip
    status, body = await gw.post(CHAT, {**HI, "stream": True})
    assert status == 504
    assert body["error"]["code"] == "deadline_exceeded"


async def test_a_generation_aborted_from_outside_is_499(gw: Deployment) -> None:
    finish = m.TextDelta("", 0, finish_reason="abort")
    gw.tokenizer.script = lambda _: Script(finish=finish)
    status, body = await gw.post(CHAT, HI)
    assert (status, body["error"]["code"]) == (499, "aborted")


async def test_length_is_reported_as_length(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(finish=replace(Script().finish, finish_reason="length"))
    _, body = await gw.post(CHAT, HI)
    assert body["choices"][0]["finish_reason"] == "length"

"""POST /v1/completions."""

from __future__ import annotations

from tests.unit.gateway.deployment import MODEL, Deployment, Script

COMPLETIONS = "/v1/completions"


async def test_an_answer_has_openai_s_shape(gw: Deployment) -> None:
    status, body = await gw.post(COMPLETIONS, {"prompt": "Once", "model": MODEL})
    assert status == 200
    body.pop("created")
    assert body == {
        "id": f"cmpl-{gw.tokenizer.requests[0].rid}",
        "object": "text_completion",
        "model": MODEL,
        "system_fingerprint": None,
        "choices": [{"index": 0, "text": 'Hello "world" é', "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 4, "image_tokens": 0},
        },
    }
    assert gw.tokenizer.requests[0].sampling.max_new_tokens == 16


async def test_every_form_of_prompt_is_taken(gw: Deployment) -> None:
    for prompt in ("a", ["a"], ["a", "b"], [1, 2, 3], [[1], [2, 3]]):
        gw.tokenizer.requests.clear()
        status, body = await gw.post(COMPLETIONS, {"prompt": prompt})
        assert status == 200
        sent = [r.text if r.text is not None else r.input_ids for r in gw.tokenizer.requests]
        assert sent == (prompt if isinstance(prompt[0], list) or prompt in (["a"], ["a", "b"]) else [prompt])
        assert [c["index"] for c in body["choices"]] == list(range(len(sent)))


async def test_several_prompts_and_n_are_prompt_major_and_usage_counts_each_prompt_once(gw: Deployment) -> None:
    _, body = await gw.post(COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "best_of": 2})
    assert [r.text for r in gw.tokenizer.requests] == ["a", "a", "b", "b"]
    assert body["usage"]["prompt_tokens"] == 14
    assert body["usage"]["completion_tokens"] == 12


async def test_echo_with_logprobs_scores_the_prompt(gw: Deployment) -> None:
    body = {"prompt": "Once upon", "echo": True, "logprobs": 2, "max_tokens": 0}
    gw.tokenizer.script = lambda _: Script(pieces=["x"])
    _, answer = await gw.post(COMPLETIONS, body)
    sent = gw.tokenizer.requests[0]
    assert (sent.echo, sent.logprob_start_len, sent.sampling.max_new_tokens) == (True, 0, 0)
    choice = answer["choices"][0]
    assert choice["text"] == "Once uponx"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["Once", "upon", "x"]
    assert logprobs["token_logprobs"] == [None, -1.0, -0.5]
    assert logprobs["top_logprobs"] == [None, {"upon": -1.0}, {"x": -0.5, "alt1": -1.5}]
    assert logprobs["text_offset"] == [0, 4, 8]
    events = await gw.events(COMPLETIONS, {**body, "stream": True})
    chunk = events[0]["choices"][0]
    assert (chunk["text"], chunk["logprobs"]) == ("Once uponx", logprobs)


async def test_streamed_text_offsets_go_on_from_chunk_to_chunk(gw: Deployment) -> None:
    _, whole = await gw.post(COMPLETIONS, {"prompt": "a", "logprobs": 0})
    events = await gw.events(COMPLETIONS, {"prompt": "a", "logprobs": 0, "stream": True})
    offsets = [e["choices"][0]["logprobs"]["text_offset"] for e in events[:-2]]
    assert [o for one in offsets for o in one] == whole["choices"][0]["logprobs"]["text_offset"] == [0, 3, 5]


async def test_a_stream_ends_with_reason_and_done(gw: Deployment) -> None:
    events = await gw.events(COMPLETIONS, {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}})
    *chunks, last, usage, done = events
    assert "".join(c["choices"][0]["text"] for c in chunks) == 'Hello "world" é'
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert done == "[DONE]"

"""POST /generate, /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from shared import messages as m
from tests.unit.gateway.deployment import Deployment, Script

GENERATE = "/generate"


async def test_a_single_text_gives_one_object(gw: Deployment) -> None:
    status, body = await gw.post(GENERATE, {"text": "hi", "rid": "r1"})
    assert status == 200
    meta = body.pop("meta_info")
    assert body == {"text": 'Hello "world" é', "output_ids": [100, 101, 102], "index": None}
    assert meta.pop("e2e_latency") > 0
    assert {k: v for k, v in meta.items() if v is not None} == {
        "id": "r1",
        "finish_reason": {"type": "stop", "matched": 2},
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "cached_tokens": 4,
        "image_tokens": 0,
    }
    assert gw.tokenizer.requests[0].sampling.max_new_tokens == 128


async def test_sglang_s_own_client_is_understood(gw: Deployment) -> None:
    params = {
        "skip_special_tokens": True, "spaces_between_special_tokens": True, "max_new_tokens": 5, "min_new_tokens": 1,
        "n": 1, "stop": ["a", "b"], "stop_token_ids": None, "stop_regex": None, "temperature": 0.0, "top_p": 1.0,
        "top_k": -1, "min_p": 0.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "ignore_eos": False,
        "regex": None, "json_schema": None, "sampling_seed": 3,
    }  # fmt: skip
    status, _ = await gw.post(GENERATE, {"text": "hi", "sampling_params": params, "lora_path": None})
    assert status == 200
    sampling = gw.tokenizer.requests[0].sampling
    assert (sampling.max_new_tokens, sampling.min_new_tokens, sampling.seed, sampling.stop) == (5, 1, 3, ["a", "b"])


async def test_a_batch_gives_a_list_with_parameters_per_prompt(gw: Deployment) -> None:
    body = {
        "input_ids": [[1, 2], [3]],
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2}],
        "return_logprob": [True, False],
        "logprob_start_len": [0, -1],
        "rid": ["a", "b"],
    }
    status, answer = await gw.post(GENERATE, body)
    assert status == 200
    assert [a["meta_info"]["id"] for a in answer] == ["a", "b"]
    assert [(r.input_ids, r.sampling.max_new_tokens, r.return_logprob) for r in gw.tokenizer.requests] == [
        ([1, 2], 1, True), ([3], 2, False),
    ]  # fmt: skip


async def test_n_of_a_single_prompt_gives_a_list(gw: Deployment) -> None:
    _, answer = await gw.post(GENERATE, {"text": "hi", "sampling_params": {"n": 2, "seed": 5}, "rid": "x"})
    assert [a["meta_info"]["id"] for a in answer] == ["x-0", "x-1"]
    assert [r.sampling.seed for r in gw.tokenizer.requests] == [5, 6]


async def test_logprobs_are_triples_with_text_only_when_asked(gw: Deployment) -> None:
    asked = {"text": "hi", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}
    _, answer = await gw.post(GENERATE, asked)
    meta = answer["meta_info"]
    assert meta["input_token_logprobs"] == [[None, 0, None], [-1.0, 1, None]]
    assert meta["output_token_logprobs"][0] == [-0.5, 100, None]
    assert meta["input_top_logprobs"] == [None, [[-1.0, 1, None]]]
    _, answer = await gw.post(GENERATE, {**asked, "return_text_in_logprobs": True})
    meta = answer["meta_info"]
    assert meta["output_token_logprobs"][1] == [-1.0, 101, "lo"]
    assert meta["output_top_logprobs"][1] == [[-1.0, 101, "lo"], [-2.0, 102, "alt1"]]


async def test_length_and_abort_are_finish_reason_objects(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(finish=m.TextDelta("", 0, finish_reason="length"))
    _, answer = await gw.post(GENERATE, {"text": "hi"})
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
    gw.tokenizer.script = lambda _: Script(finish=m.TextDelta("", 0, finish_reason="abort"))
    _, answer = await gw.post(GENERATE, {"text": "hi"})
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"


async def test_streamed_text_is_cumulative(gw: Deployment) -> None:
    gate = asyncio.Event()
    gw.tokenizer.script = lambda _: Script(gate=gate)
    async with gw.session.post(gw.url + GENERATE, json={"text": "hi", "stream": True}) as response:
        first = await response.content.readany()
        gate.set()
        rest = await response.content.read()
    assert first.startswith(b'data: {"text":"Hel"')
    assert b'"finish_reason":null' in first
    *_, last, done, end = rest.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert last.startswith('data: {"text":"Hello \\"world\\" é","output_ids":[100,101,102]')


async def test_streamed_batches_carry_the_index(gw: Deployment) -> None:
    events = await gw.events(GENERATE, {"text": ["a", "b"], "stream": True})
    last = {e["index"]: e["text"] for e in events[:-1]}
    assert last == {0: 'Hello "world" é', 1: 'Hello "world" é'}
    assert events[-1] == "[DONE]"


async def test_max_new_tokens_zero_computes_the_prompt_only(gw: Deployment) -> None:
    finish = replace(Script().finish, finish_reason="length", prompt=m.PromptInfo(7, 7))
    gw.tokenizer.script = lambda _: Script(pieces=[""], finish=finish)
    status, _ = await gw.post(GENERATE, {"text": "hi", "sampling_params": {"max_new_tokens": 0}})
    assert status == 200
    assert gw.tokenizer.requests[0].sampling.max_new_tokens == 0


async def test_tokenize_and_detokenize_take_one_or_several(gw: Deployment) -> None:
    assert (await gw.post("/tokenize", {"prompt": "ab"}))[1] == {"tokens": [97, 98], "count": 2, "max_model_len": 2048}
    assert (await gw.post("/tokenize", {"prompt": ["a", "bc"]}))[1]["tokens"] == [[97], [98, 99]]
    chat = {"messages": [{"role": "user", "content": "a"}]}
    assert (await gw.post("/tokenize", chat))[1]["tokens"] == [97]
    assert (await gw.post("/detokenize", {"tokens": [97, 98]}))[1] == {"text": "ab"}
    assert (await gw.post("/detokenize", {"tokens": [[97], [98]]}))[1] == {"text": ["a", "b"]}

"""What a newcomer tries first, with the clients a newcomer has."""

from __future__ import annotations

import json

import nats
import openai
import pytest

from tests.e2e.stack import Stack

PARIS = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)


def test_the_model_knows_the_capital_of_france(stack: Stack) -> None:
    answer = stack.chat("What is the capital of France?", max_tokens=32)
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_a_stream_gives_the_same_text_as_one_answer(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    whole = client.chat.completions.create(model=model, messages=PARIS, temperature=0, max_tokens=32)
    chunks = list(
        client.chat.completions.create(
            model=model, messages=PARIS, temperature=0, max_tokens=32, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 3
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_carry_logprobs_that_are_the_best_of_their_alternatives(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    out = client.completions.create(
        model=model, prompt="The capital of France is", temperature=0, max_tokens=8, logprobs=3
    )
    lp = out.choices[0].logprobs
    assert lp is not None
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == out.usage.completion_tokens
    assert "".join(lp.tokens) == out.choices[0].text
    for value, top in zip(lp.token_logprobs, lp.top_logprobs, strict=True):
        assert value == pytest.approx(max(top.values()), abs=1e-3)


def test_two_choices_with_a_seed_are_different_and_come_again(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    story = [{"role": "user", "content": "Tell me a story."}]

    def ask() -> list[str]:
        out = client.chat.completions.create(model=model, messages=story, temperature=1.0, max_tokens=16, n=2, seed=7)
        return [c.message.content for c in sorted(out.choices, key=lambda c: c.index)]

    first = ask()
    assert first[0] != first[1]
    assert ask() == first


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    out = client.completions.create(model=model, prompt="1, 2, 3, 4, 5, 6,", temperature=0, max_tokens=32, stop=["9"])
    assert out.choices[0].finish_reason == "stop"
    assert "9" not in out.choices[0].text
    assert "8" in out.choices[0].text


def test_the_second_turn_of_a_chat_finds_the_first_in_the_cache(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    turns = [{"role": "user", "content": "Name three rivers of Europe, one per line, with one sentence about each."}]
    first = client.chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=40)
    turns += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And which is the longest?"},
    ]
    second = client.chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=8)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens


def test_native_generate_speaks_sglangs_shape(stack: Stack) -> None:
    body = {
        "text": "The capital of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 6},
        "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2, "return_text_in_logprobs": True,
    }  # fmt: skip
    status, out = stack.post("/generate", body)
    assert status == 200, out
    meta = out["meta_info"]
    assert meta["completion_tokens"] == 6
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]
    assert meta["input_token_logprobs"][0][0] is None
    assert len(meta["output_token_logprobs"]) == 6
    assert "".join(t[2] for t in meta["output_token_logprobs"]) == out["text"]


def test_scoring_a_prompt_generates_nothing(stack: Stack) -> None:
    body = {"text": "Paris is in France.", "sampling_params": {"max_new_tokens": 0}, "return_logprob": True,
            "logprob_start_len": 0}  # fmt: skip
    status, out = stack.post("/generate", body)
    assert status == 200, out
    assert out["text"] == ""
    assert out["meta_info"]["completion_tokens"] == 0
    assert all(value < 0 for value, *_ in out["meta_info"]["input_token_logprobs"][1:])


def test_metrics_have_the_names_that_dashboards_know(stack: Stack) -> None:
    import urllib.request

    text = urllib.request.urlopen(stack.url + "/metrics", timeout=30).read().decode()
    for name in (
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "num_running_reqs", "num_queue_reqs", "token_usage", "cache_hit_rate", "prompt_tokens_total",
        "generation_tokens_total", "cached_tokens_total",
    ):  # fmt: skip
        assert name in text


async def test_a_nats_client_gets_a_private_token_stream(stack: Stack) -> None:
    nc = await nats.connect(stack.nats_url)
    try:
        sub = await nc.subscribe("my.tokens")
        await nc.flush()
        request = {
            "rid": "nats-1", "reply": "my.tokens",
            "chat": {"messages": PARIS}, "sampling": {"temperature": 0, "max_new_tokens": 32},
        }  # fmt: skip
        answer = json.loads(
            (await nc.request("rz.v1.default.tokenizer.generate", json.dumps(request).encode(), 30)).data
        )
        assert answer["rid"] == "nats-1"
        text, finish = "", None
        while finish is None:
            for delta in json.loads((await sub.next_msg(60)).data)["deltas"]:
                text += delta.get("text", "")
                finish = delta.get("finish_reason")
        assert "Paris" in text
        assert finish == "stop"
    finally:
        await nc.close()

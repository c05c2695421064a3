"""Programs of the language on the real model, through every kind of backend."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import rhizome as rz
from rhizome.models import DEFAULT_MODEL
from tests.e2e.stack import Stack

COUNTRIES = ("France", "Spain", "Italy", "Japan", "Egypt")
SUBJECTS = (
    "The capital of", "The people of", "The food of", "A long trip to", "The weather in", "The old kings of",
    "A map of", "The language of", "The rivers of", "The football team of", "Good news from", "A letter from",
    "The trains of", "The winters of", "The schools in", "Fruit from", "The ships of", "The poets of",
    "The airports of", "A short history of",
)  # fmt: skip
CHOICES = [" is known to all", " is", " was famous", ", they say, costs nothing"]


@pytest.fixture(scope="module")
def endpoint(stack: Stack) -> Iterator[rz.RuntimeEndpoint]:
    rz.set_default_backend(rz.RuntimeEndpoint(stack.url))
    yield rz.RuntimeEndpoint(stack.url)
    rz.set_default_backend(None)


def openai_backend(stack: Stack, chat: bool = False) -> rz.OpenAI:
    return rz.OpenAI(DEFAULT_MODEL, chat, base_url=stack.url + "/v1", api_key="none", dialect="rhizome")


@rz.function
def dialog(s, question):
    s += rz.system("You are a helpful assistant.")
    s += rz.user(question)
    s += rz.assistant(rz.gen("answer", max_tokens=16))
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += rz.user(f"Say that again in {i + 2} words.")
        f += rz.assistant("Well:" + rz.gen("again", max_tokens=8, stop="\n"))
    forks.join()
    s += rz.user("Is that true?")
    s += rz.assistant("I say " + rz.select("truth", ["yes", "no"]) + ".")


def test_a_dialog_is_plausible_and_the_same_over_http_and_nats(stack: Stack, endpoint: rz.RuntimeEndpoint) -> None:
    over_http = dialog.run("What is the capital of France?", temperature=0)
    assert "Paris" in over_http["answer"]
    assert len(over_http["again"]) == 2
    assert over_http["truth"] in ("yes", "no")
    over_nats = dialog.run("What is the capital of France?", temperature=0, backend=rz.NatsEndpoint(stack.nats_url))
    assert over_nats.text() == over_http.text()
    assert over_nats["again"] == over_http["again"]
    # The markup is the model's own template, as the server renders it.
    ids = stack.post("/tokenize", {"messages": over_http.messages(), "add_generation_prompt": False})[1]["tokens"]
    assert stack.post("/detokenize", {"tokens": ids, "skip_special_tokens": False})[1]["text"] == over_http.text()


def test_streaming_gives_the_same_text_in_pieces(endpoint: rz.RuntimeEndpoint) -> None:
    state = dialog.run("What is the capital of Spain?", temperature=0, stream=True)
    pieces = list(state.text_iter("answer"))
    assert len(pieces) > 1
    assert "".join(pieces) == dialog.run("What is the capital of Spain?", temperature=0)["answer"]


@pytest.fixture(scope="module")
def likelihoods(default_model: tuple[Any, Any]) -> dict[str, list[list[tuple[int, float, float]]]]:
    """Per prompt and choice: token, log probability after the prompt, and without it; by transformers."""
    model, tokenizer = default_model

    def logprobs(batch: list[list[int]]) -> list[list[float]]:
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        with torch.no_grad():
            probs = model(ids, attention_mask=mask).logits.log_softmax(-1)
        return [[0.0, *(float(probs[r, i, t]) for i, t in enumerate(row[1:]))] for r, row in enumerate(batch)]

    out, without_prompt = {}, {}
    for prompt in (f"{subject} {country}" for subject in SUBJECTS for country in COUNTRIES):
        alone = tokenizer(prompt)["input_ids"]
        rows = [tokenizer(prompt + choice)["input_ids"] for choice in CHOICES]
        starts = [next((i for i, (a, b) in enumerate(zip(alone, r, strict=False)) if a != b), len(alone)) for r in rows]
        for row, start in zip(rows, starts, strict=True):
            if tuple(row[start:]) not in without_prompt:
                without_prompt[tuple(row[start:])] = logprobs([row[start:]])[0]
        out[prompt] = [
            list(zip(row[start:], probs[start:], without_prompt[tuple(row[start:])], strict=True))
            for row, start, probs in zip(rows, starts, logprobs(rows), strict=True)
        ]
    return out


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _greedy(rows: list[list[tuple[int, float, float]]]) -> int:
    width = max(map(len, rows))
    padded = [[t[1] for t in r] + [_mean([t[1] for t in r])] * (width - len(r)) for r in rows]
    left = list(range(len(rows)))
    for column in range(width):
        most = max(padded[i][column] for i in left)
        left = [i for i in left if abs(padded[i][column] - most) < 1e-4]
        if len(left) == 1:
            break
    return left[0]


REFERENCE = {
    rz.token_length_normalized: lambda rows: max(range(4), key=lambda i: _mean([t[1] for t in rows[i]])),
    rz.greedy_token_selection: _greedy,
    rz.unconditional_likelihood_normalized: lambda rows: max(
        range(4), key=lambda i: _mean([t[1] - t[2] for t in rows[i]])
    ),
}


@pytest.mark.parametrize("method", list(REFERENCE), ids=repr)
def test_select_chooses_what_transformers_finds_likeliest(
    endpoint: rz.RuntimeEndpoint, likelihoods: dict[str, Any], method: Any
) -> None:
    @rz.function
    def choose(s, prompt):
        s += prompt + rz.select("choice", CHOICES, choices_method=method)

    states = choose.run_batch([{"prompt": prompt} for prompt in likelihoods], num_threads=16)
    assert len(states) == 100
    for state, (prompt, rows) in zip(states, likelihoods.items(), strict=True):
        assert state["choice"] == CHOICES[REFERENCE[method](rows)], prompt
        got = state.get_meta_info("choice")["input_token_logprobs"]
        assert [[e[1] for e in row] for row in got] == [[t[0] for t in row] for row in rows]


SHOTS = (
    "Text: Ann works as a nurse in Oslo.\nName: Ann\nJob: nurse\nCity: Oslo\n\n"
    "Text: Tom works as a baker in Rome.\nName: Tom\nJob: baker\nCity: Rome\n\n"
)


def extract(s, text):
    s += SHOTS + "Text: " + text + "\nName:" + rz.gen("name", stop="\n", max_tokens=12)
    s += "\nJob:" + rz.gen("job", stop="\n", max_tokens=12) + "\nCity:" + rz.gen("city", stop="\n", max_tokens=12)


def wrong_guess(s, text):
    """The model would go on with Job: what the program appends is something else."""
    s += SHOTS + "Text: " + text + "\nName:" + rz.gen("name", stop="\n", max_tokens=12)
    s += "\nFirst letter of the name:" + rz.gen("letter", stop="\n", max_tokens=4)


def test_three_fields_take_one_call_to_a_black_box_and_have_the_same_text(stack: Stack) -> None:
    text, backend = "Eva works as a teacher in Paris.", openai_backend(stack)
    plain = rz.function(extract).run(text, backend=backend, temperature=0)
    ahead = rz.function(extract, num_api_spec_tokens=32).run(text, backend=backend, temperature=0)
    assert (ahead["name"], ahead["job"], ahead["city"]) == (" Eva", " teacher", " Paris")
    assert ahead.text() == plain.text()
    assert plain.report()["calls"] == 3
    assert (ahead.report()["calls"], ahead.report()["calls_saved"]) == (1, 2)


def test_a_forced_mismatch_gives_the_right_text(stack: Stack) -> None:
    text, backend = "Eva works as a teacher in Paris.", openai_backend(stack)
    plain = rz.function(wrong_guess).run(text, backend=backend, temperature=0)
    ahead = rz.function(wrong_guess, num_api_spec_tokens=32).run(text, backend=backend, temperature=0)
    assert ahead.text() == plain.text()
    report = ahead.report()
    assert (report["calls"], report["calls_saved"], report["retries"]) == (2, 0, 0)
    assert report["tokens_wasted"] > 0


async def test_two_hundred_speculating_programs_at_a_time(stack: Stack) -> None:
    @rz.function(num_api_spec_tokens=16)
    async def short(s, i):
        s += SHOTS + f"Text: Eva works as a teacher in City{i}.\nName:" + rz.gen("name", stop="\n", max_tokens=6)
        s += "\nJob:" + rz.gen("job", stop="\n", max_tokens=6)

    states = await short.arun_batch([{"i": i} for i in range(200)], backend=openai_backend(stack), temperature=0)
    assert [(await s["name"], await s["job"]) for s in states] == [(" Eva", " teacher")] * 200
    assert sum(s.report()["calls"] for s in states) == 200


PROGRAM = """
import signal, sys, rhizome as rz
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
@rz.function
def endless(s):
    forks = s.fork(3)
    forks += "Once upon a time" + rz.gen("a", max_tokens=1500, ignore_eos=True)
    print("waiting", flush=True)
    forks[0]["a"]
endless.run(backend=rz.RuntimeEndpoint(sys.argv[1]))
"""


def test_ctrl_c_leaves_no_request_on_the_server(stack: Stack) -> None:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, stack.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"waiting\n"
    _until(lambda: stack.get("/server_info")["gateway"]["in_flight"] == 3)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert b"Unclosed" not in errors
    _until(lambda: stack.get("/server_info")["gateway"]["in_flight"] == 0 and not stack.engine()["running_reqs"])


async def test_cancelled_programs_abort_over_nats(stack: Stack) -> None:
    @rz.function
    async def endless(s):
        s += "Once upon a time" + rz.gen("a", max_tokens=1500, ignore_eos=True)
        await s["a"]

    backend = rz.NatsEndpoint(stack.nats_url)
    task = asyncio.create_task(endless(backend=backend))
    await asyncio.to_thread(_until, lambda: stack.engine()["running_reqs"] == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(_until, lambda: stack.engine()["running_reqs"] == 0)


def _until(condition: Any, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

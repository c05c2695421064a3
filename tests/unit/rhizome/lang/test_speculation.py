"""API speculative execution: what one call serves, what a mismatch costs, that the text is what it would be without."""

from __future__ import annotations

from typing import Any

import pytest

import rhizome as rz
from rhizome.lang.backends.base import Completion, Usage

WORLD = "Name: Bob\nBorn: 1990 in Rome\nJob: cook\nThe end of all."


def model(world: str) -> Any:
    """A model that knows one text by heart and goes on with it wherever the prompt stands in it."""

    def answer(prompt: Any, _: Any) -> str:
        text = prompt.turn_text or prompt.text
        for size in range(len(text), 0, -1):
            at = world.find(text[-size:])
            if at >= 0:
                return world[at + size :]
        return world

    return answer


def extract(s):
    s += "Name:" + rz.gen("name", stop="\n") + "\nBorn:" + rz.gen("born", stop="\n")
    s += "\nJob:" + rz.gen("job", stop="\n") + "\n"


def extract_chat(s):
    s += rz.user("Who is it?")
    s += rz.assistant(
        "Name:"
        + rz.gen("name", stop="\n")
        + "\nBorn:"
        + rz.gen("born", stop="\n")
        + "\nJob:"
        + rz.gen("job", stop="\n")
    )


plain, ahead = rz.function(extract), rz.function(extract, num_api_spec_tokens=64)
chat_ahead = rz.function(extract_chat, num_api_spec_tokens=64)


def test_three_fields_take_one_call_and_have_the_same_text() -> None:
    slow, fast = rz.FakeBackend(model(WORLD)), rz.FakeBackend(model(WORLD))
    wanted, got = plain.run(backend=slow, temperature=0), ahead.run(backend=fast, temperature=0)
    assert got.text() == wanted.text() == "Name: Bob\nBorn: 1990 in Rome\nJob: cook\n"
    assert (slow.count(), fast.count()) == (3, 1)
    report = got.report()
    assert (report["calls"], report["calls_saved"], report["retries"]) == (1, 2, 0)
    assert report["completion_tokens"] == 17
    assert report["tokens_wasted"] == 5  # "The end of all."
    assert got.get_meta_info("born") == {
        "finish_reason": {"type": "stop", "matched": "\n"}, "completion_tokens": 3, "speculated": True,
    }  # fmt: skip


def test_a_mismatch_is_dropped_and_called_again() -> None:
    world = model("Name: Bob\nAge: 33\nJob: cook\n")

    def answer(prompt: Any, params: Any) -> str:
        return " 1990\nJob: cook\n" if prompt.text.endswith("Born:") else world(prompt, params)

    backend = rz.FakeBackend(answer)
    state = ahead.run(backend=backend, temperature=0)
    assert state.text() == "Name: Bob\nBorn: 1990\nJob: cook\n"
    report = state.report()
    assert (report["calls"], report["calls_saved"]) == (2, 1)
    assert report["tokens_wasted"] > 0


def test_lengths_are_tokens_not_characters() -> None:
    @rz.function(num_api_spec_tokens=64)
    def program(s):
        s += "Name:" + rz.gen("a", max_tokens=1) + rz.gen("b", max_tokens=3) + rz.gen("c", max_tokens=2)

    fast, slow = rz.FakeBackend(model(WORLD)), rz.FakeBackend(model(WORLD))
    state, other = program.run(backend=fast, temperature=0), rz.function(program.func).run(backend=slow, temperature=0)
    assert (
        (state["a"], state["b"], state["c"]) == (" Bob", "\nBorn:", " 1990 in") == (other["a"], other["b"], other["c"])
    )
    assert (fast.count(), slow.count()) == (1, 3)
    assert state.get_meta_info("b")["finish_reason"] == {"type": "length", "length": 3}


def test_text_that_ends_inside_a_token_drops_the_guess() -> None:
    @rz.function(num_api_spec_tokens=64)
    def program(s):
        s += "Name: " + rz.gen("name", stop="\n") + "\nBorn: " + rz.gen("born", stop="\n")

    backend = rz.FakeBackend(model(WORLD))  # whose tokens begin with the space
    state = program.run(backend=backend, temperature=0)
    assert (state["name"], state["born"]) == ("Bob", "1990 in Rome")
    assert backend.count() == 2


def test_another_distribution_or_a_grammar_is_never_guessed() -> None:
    @rz.function(num_api_spec_tokens=64)
    def program(s):
        s += "Name:" + rz.gen("a", stop="\n") + "\nBorn:" + rz.gen("b", stop="\n", temperature=1)
        s += "\nJob:" + rz.gen("c", stop="\n", regex=".*")

    backend = rz.FakeBackend(model(WORLD))
    assert program.run(backend=backend, temperature=0)["c"] == " cook"
    assert backend.count() == 3


def test_streaming_shows_only_the_generation_and_saves_the_same_calls() -> None:
    backend = rz.FakeBackend(model(WORLD))
    state = ahead.run(backend=backend, temperature=0, stream=True)
    assert "".join(state.text_iter()) == "Name: Bob\nBorn: 1990 in Rome\nJob: cook\n"
    assert backend.count() == 1


def test_lengths_are_estimated_where_the_api_tells_no_tokens() -> None:
    backend = rz.FakeBackend(model(WORLD), tells_tokens=False)
    state = ahead.run(backend=backend, temperature=0)
    assert (state["job"], backend.count()) == (" cook", 1)
    assert state.get_meta_info("job")["tokens_estimated"] is True


async def test_two_hundred_programs_do_not_disturb_each_other() -> None:
    @rz.function(num_api_spec_tokens=64)
    async def program(s, i):
        s += f"{i} Name:" + rz.gen("name", stop="\n") + "\nBorn:" + rz.gen("born", stop="\n")

    def answer(prompt: Any, _: Any) -> str:
        number = prompt.text.split()[0]
        return f" n{number}\nBorn: b{number}\n" if int(number) % 2 else f" n{number}\nDied: d{number}\n"

    def by_end(prompt: Any, params: Any) -> str:
        return f" b{prompt.text.split()[0]}\n" if prompt.text.endswith("Born:") else answer(prompt, params)

    backend = rz.FakeBackend(by_end, latency_s=0.001)
    states = await program.arun_batch([{"i": i} for i in range(200)], backend=backend, temperature=0)
    assert [await s["born"] for s in states] == [f" b{i}" for i in range(200)]
    assert backend.count() == 300  # the even ones were wrong and asked again


def test_a_chat_turn_is_one_call_matched_against_its_pattern() -> None:
    backend = rz.FakeBackend([WORLD], chat=True)
    state = chat_ahead.run(backend=backend, temperature=0)
    assert (state["name"], state["born"], state["job"]) == (" Bob", " 1990 in Rome", " cook")
    assert state.messages()[-1] == {"role": "assistant", "content": "Name: Bob\nBorn: 1990 in Rome\nJob: cook"}
    assert (backend.count(), state.report()["calls_saved"]) == (1, 2)
    assert backend.calls[0].prompt.messages == [{"role": "user", "content": "Who is it?"}]  # the prefix is unchanged


def test_a_chat_mismatch_is_asked_again_boundedly_and_then_raised() -> None:
    backend = rz.FakeBackend(["I do not know.", "Name: Bob, born 1990", WORLD], chat=True)
    state = chat_ahead.run(backend=backend)
    assert state["job"] == " cook"
    assert (state.report()["retries"], backend.count()) == (2, 3)

    backend = rz.FakeBackend(lambda *_: "I do not know.", chat=True)
    state = chat_ahead.run(backend=backend)
    with pytest.raises(rz.ProgramError, match=r"after 3 call\(s\): expected 'Name:', the model said 'I do not know"):
        state["born"]
    assert isinstance(state.error().__cause__, rz.SpeculationMismatch)
    assert chat_ahead.run(backend=backend, temperature=0).report()["calls"] == 1  # the same again is no help


def test_reading_inside_a_chat_turn_never_waits_for_its_end() -> None:
    @rz.function(num_api_spec_tokens=64)
    def program(s):
        s += rz.user("Who is it?")
        s += rz.assistant_begin()
        s += "Name:" + rz.gen("name", stop="\n")
        assert s["name"] == " Bob"
        s += "\nBorn:" + rz.gen("born", stop="\n")
        s += rz.assistant_end()

    backend = rz.FakeBackend([WORLD], chat=True)
    state = program.run(backend=backend, temperature=0)
    assert (state["born"], backend.count()) == (" 1990 in Rome", 1)


def test_a_chat_api_that_goes_on_with_a_begun_turn_needs_no_pattern() -> None:
    backend = rz.FakeBackend(model("Name: Bob\nDied: 2020\nBorn: 1990\nJob: cook\n"), chat=True, prefill=True)
    state = chat_ahead.run(backend=backend, temperature=0)
    assert state.messages()[-1]["content"] == "Name: Bob\nBorn: 1990\nJob: cook"
    assert backend.count() == 2  # one mismatch


def test_without_speculation_a_chat_api_refuses_what_it_cannot_do() -> None:
    class Chat(rz.FakeBackend):
        async def generate(self, prompt: Any, params: Any, *, with_tokens: bool = False) -> Any:
            from rhizome.lang.chat_messages import as_messages

            as_messages(prompt, prefill=self.can_prefill)
            return await super().generate(prompt, params, with_tokens=with_tokens)

    state = rz.function(extract_chat).run(backend=Chat([WORLD], chat=True))
    with pytest.raises(rz.ProgramError, match=r"cannot go on with a begun answer.*num_api_spec_tokens"):
        state["name"]


async def test_cancelling_a_speculative_turn_resolves_its_readers() -> None:
    backend = rz.FakeBackend([WORLD], chat=True, latency_s=60)
    state = await chat_ahead.arun(backend=backend, stream=True)
    await backend.until_running(1)
    state.cancel()
    with pytest.raises(rz.ProgramError, match="cancelled"):
        await state.get_var("name")
    await backend.until_running(0)
    assert backend.cancelled == 1


def test_what_else_stands_in_a_speculative_chat_turn_keeps_its_place() -> None:
    @rz.function(num_api_spec_tokens=64)
    def forked(s):
        s += rz.user("Who?") + rz.assistant_begin() + "Name:"
        branches = s.fork(2)
        branches += rz.gen("name", stop="\n") + "\nBorn:" + rz.gen("born", stop="\n")
        assert s.text() == "Who?Name:"
        branches.join()

    assert forked.run(backend=rz.FakeBackend([WORLD, WORLD], chat=True), temperature=0)["born"] == [" 1990 in Rome"] * 2

    @rz.function(num_api_spec_tokens=64)
    def scoped(s):
        s += rz.assistant_begin()
        with s.var_scope("all"):
            s += "Name:" + rz.gen("name", stop="\n")

    with pytest.raises(rz.ProgramError, match="var_scope inside an assistant's turn"):
        scoped.run(backend=rz.FakeBackend([WORLD], chat=True))["all"]


@pytest.mark.timeout(20)
def test_thoughts_in_a_speculative_chat_turn_are_a_variable() -> None:
    @rz.function(num_api_spec_tokens=64)
    def program(s):
        s += rz.user("q")
        with s.assistant():
            s += rz.separate_reasoning("A:" + rz.gen("a", stop="\n") + "\nB:" + rz.gen("b", stop="\n"), "qwen3")
            s.set_var("read", s.error() or s["a_reasoning_content"])

    state = program.run(backend=rz.FakeBackend(["A:<think>hm</think>yes\nB:no\n"], chat=True), temperature=0)
    assert (state["a"], state["b"], state["b_reasoning_content"]) == ("yes", "no", "")
    assert state["read"] == "hm"
    assert state.messages()[-1]["content"] == "A:yes\nB:no"

    state = program.run(backend=rz.FakeBackend(lambda *_: "no", chat=True), temperature=0)
    for name in ("a", "a_reasoning_content"):
        with pytest.raises(rz.ProgramError, match="expected 'A:'"):
            state[name]


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (Completion(" one two", {}, Usage(4000, 2), "length", [" one", " two"]), 2),  # at the end of its context
        (Completion("\U0001f600\U0001f601", {}, Usage(5, 64), "length"), 64),  # characters of many tokens
        (Completion(" some text", {}, Usage(), "length"), 1),  # no usage told
        (Completion("", {}, Usage(4000, 0), "length"), 0),
    ],
)
def test_a_server_that_stops_before_the_limit_ends_the_generation(answer: Completion, tokens: int) -> None:
    class Short(rz.FakeBackend):
        async def generate(self, prompt: Any, params: Any, *, with_tokens: bool = False) -> Any:
            return [answer]

    @rz.function(num_api_spec_tokens=8)
    def program(s):
        s += rz.gen("x", max_tokens=64)

    state = program.run(backend=Short([]))
    assert state["x"] == answer.text
    meta = state.get_meta_info("x")
    assert (meta["finish_reason"], meta["completion_tokens"]) == ({"type": "length", "length": tokens}, tokens)


def test_a_picture_drops_the_guess() -> None:
    def answer(prompt: Any, _: Any) -> str:
        return " seen\n" if prompt.images else " cat\n dog\n"

    def program(s):
        s += "A:" + rz.gen("a", stop="\n") + rz.image(b"\x89PNG\r\n\x1a\n") + "\n" + rz.gen("b", stop="\n")

    for spec_tokens in (None, 64):
        state = rz.function(program, spec_tokens).run(backend=rz.FakeBackend(answer), temperature=0)
        assert (state["a"], state["b"]) == (" cat", " seen")


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_said_after_thoughts_that_are_taken_out_is_no_guess(stream: bool) -> None:
    def answer(prompt: Any, _: Any) -> str:
        if prompt.text.endswith("A:"):
            return "<think>deep</think>yes\n B: it thought\n"
        return " it saw none\n"

    def program(s):
        s += "A:" + rz.separate_reasoning(rz.gen("a", stop="\n"), "qwen3")
        s += "\n B:" + rz.gen("b", stop="\n")

    for spec_tokens in (None, 64):
        run = rz.function(program, spec_tokens).run
        state = run(backend=rz.FakeBackend(answer), temperature=0, stream=stream)
        assert (state["a"], state["a_reasoning_content"], state["b"]) == ("yes", "deep", " it saw none")


def test_a_branch_of_an_open_chat_turn_gives_back_only_its_own_text() -> None:
    @rz.function(num_api_spec_tokens=64)
    def program(s):
        s += rz.user("q") + rz.assistant_begin() + "Tip: "
        forks = s.fork(2)
        forks += rz.gen("x", stop=".") + "."
        forks.join("concate_and_append")
        s += rz.assistant_end()

    for chat, answer in ((True, "Tip: go."), (False, "go.")):
        backend = rz.FakeBackend(lambda *_, answer=answer: answer, chat=chat, chat_template="messages")
        assert program.run(backend=backend, temperature=0).text() == "qTip: go.go."


def test_a_lone_generation_with_a_grammar_or_tools_can_be_read_inside_its_chat_turn() -> None:
    for params in ({"json_schema": "{}"}, {"tools": [{"type": "function"}]}):

        @rz.function(num_api_spec_tokens=64)
        def program(s, params=params):
            s += rz.user("q")
            with s.assistant():
                s += rz.gen("x", **params)
                assert s["x"] == "{}"
                s += " done"

        backend = rz.FakeBackend(["{}"], chat=True)
        assert program.run(backend=backend).messages()[-1]["content"] == "{} done"
        assert backend.calls[0].params.max_new_tokens == 128  # its own limit, not that of a speculative call

"""Ten programs in SGLang's published style, with only the import changed, exact on the fake backend."""

from __future__ import annotations

import json

import pytest

import rhizome as sgl
from rhizome import assistant, assistant_begin, assistant_end, function, gen, set_default_backend, system, user

IPV4 = r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"


@sgl.function
def multi_turn_qa(s):
    s += system("You are a helpful assistant than can answer questions.")
    s += user("Please give me a list of 3 countries and their capitals.")
    s += assistant(gen("first_answer", max_tokens=512))
    s += user("Please give me another list of 3 countries and their capitals.")
    s += assistant(gen("second_answer", max_tokens=512))
    return s


@function
def tool_use(s, question):
    s += "To answer this question: " + question + ". "
    s += "I need to use a " + sgl.gen("tool", choices=["calculator", "search engine"]) + ". "

    if s["tool"] == "calculator":
        s += "The math expression is" + sgl.gen("expression")
    elif s["tool"] == "search engine":
        s += "The key word to search is" + sgl.gen("word")


@sgl.function
def tip_suggestion(s):
    s += "Here are two tips for staying healthy: 1. Balanced Diet. 2. Regular Exercise.\n\n"

    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Now, expand tip {i + 1} into a paragraph:\n"
        f += sgl.gen("detailed_tip", max_tokens=256, stop="\n\n")

    s += "Tip 1:" + forks[0]["detailed_tip"] + "\n"
    s += "Tip 2:" + forks[1]["detailed_tip"] + "\n"
    s += "In summary" + sgl.gen("summary")


@sgl.function
def regular_expression_gen(s):
    s += "Q: What is the IP address of the Google DNS servers?\n"
    s += "A: " + sgl.gen("answer", temperature=0, regex=IPV4)


@sgl.function
def text_qa(s, question):
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n")


@function
def chat_example(s):
    s += system("You are a helpful assistant.")

    with s.user():
        s += "Question: What is the capital of France?"

    s += assistant_begin()
    s += "Answer: " + gen("answer", max_tokens=100, stop="\n")
    s += assistant_end()


@function
def character_gen(s, name):
    s += user(f"{name} is a character in Harry Potter. Please fill in the following information about this character.")
    s += assistant(gen("json_output", max_tokens=256, json_schema=json.dumps({"type": "object"})))


@function
def which_country(s, city):
    s += city + " is in " + sgl.select("country", ["France", "Italy"], choices_method=sgl.greedy_token_selection)


@function
def parallel_sample(s, question):
    s += "Q: " + question + "\nA:"
    forks = s.fork(3)
    forks += sgl.gen("answer", stop="\n")
    forks.join()


@function
def typed(s):
    s += "The answer is" + sgl.gen_int("answer", max_tokens=8) + "."


def test_turns_become_messages_and_marked_text() -> None:
    backend = sgl.FakeBackend(["France, Paris", "Spain, Madrid"], chat_template="chatml")
    set_default_backend(backend)
    state = multi_turn_qa()
    assert state["first_answer"], state["second_answer"] == ("France, Paris", "Spain, Madrid")
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert state.text() == (
        "<|im_start|>system\nYou are a helpful assistant than can answer questions.<|im_end|>\n"
        "<|im_start|>user\nPlease give me a list of 3 countries and their capitals.<|im_end|>\n"
        "<|im_start|>assistant\nFrance, Paris<|im_end|>\n"
        "<|im_start|>user\nPlease give me another list of 3 countries and their capitals.<|im_end|>\n"
        "<|im_start|>assistant\nSpain, Madrid<|im_end|>\n"
    )
    first = backend.calls[0].params
    assert first is not None
    assert (first.limit, first.stops, first.temperature) == (512, ("<|im_end|>",), 1.0)


@pytest.mark.parametrize(
    ("likely", "text"),
    [
        ("calculator", "calculator. The math expression is 2 * 2"),
        ("search engine", "search engine. The key word to search is paris"),
    ],
)  # fmt: skip
def test_control_flow_follows_a_choice(likely: str, text: str) -> None:
    backend = sgl.FakeBackend(
        {"expression is": " 2 * 2", "to search is": " paris"},
        scores=lambda _, choice: [-1.0 if choice == likely else -5.0],
    )
    state = tool_use.run(question="What is 2 * 2?", backend=backend)
    assert state.text() == "To answer this question: What is 2 * 2?. I need to use a " + text
    assert ("expression" in state) == (likely == "calculator")


def test_branches_of_a_fork_come_together() -> None:
    backend = sgl.FakeBackend(
        {"tip 1 into a paragraph:\n": "Eat.\n\nAnd", "tip 2 into a paragraph:\n": "Run.\n\nAnd", "In summary": " both."}
    )
    state = tip_suggestion.run(backend=backend)
    assert state.text().endswith("Exercise.\n\nTip 1:Eat.\nTip 2:Run.\nIn summary both.")
    assert backend.prefixes == [
        "Here are two tips for staying healthy: 1. Balanced Diet. 2. Regular Exercise.\n\n"
    ]  # computed once for both branches


def test_a_regex_goes_to_the_server() -> None:
    backend = sgl.FakeBackend(["8.8.8.8"])
    state = regular_expression_gen.run(backend=backend)
    assert state["answer"] == "8.8.8.8"
    assert backend.calls[0].params.regex == IPV4


def test_a_batch_keeps_the_order() -> None:
    backend = sgl.FakeBackend(lambda prompt, _: " " + prompt.text.split("of ")[1][:3] + "\nQ:")
    countries = ["the United Kingdom", "France", "Japan"]
    states = text_qa.run_batch([{"question": f"capital of {c}"} for c in countries], progress_bar=True, backend=backend)
    assert [s["answer"] for s in states] == [" the", " Fra", " Jap"]


def test_streaming_gives_the_whole_text_in_pieces() -> None:
    backend = sgl.FakeBackend([" Paris is the capital.\nQ"])
    state = text_qa.run(question="What is the capital of France?", temperature=0.1, stream=True, backend=backend)
    assert "".join(state.text_iter()) == "Q: What is the capital of France?\nA: Paris is the capital."
    assert list(state.text_iter("answer")) == [" Paris is the capital."]  # complete: in one piece


def test_roles_by_context_manager_and_by_begin_and_end() -> None:
    backend = sgl.FakeBackend(["Paris.\nMore"], chat_template="llama-3-instruct")
    state = chat_example.run(backend=backend)
    assert state.messages() == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Question: What is the capital of France?"},
        {"role": "assistant", "content": "Answer: Paris."},
    ]
    assert state.text().endswith("<|start_header_id|>assistant<|end_header_id|>\n\nAnswer: Paris.<|eot_id|>")


def test_json_schema_and_dtype_constrain() -> None:
    backend = sgl.FakeBackend(['{"name": "Harry"}', " 42 or so"])
    assert character_gen.run("Harry Potter", backend=backend)["json_output"] == '{"name": "Harry"}'
    assert backend.calls[0].params.grammar == ("json_schema", '{"type": "object"}')
    assert typed.run(backend=backend).text() == "The answer is."  # a stop string of dtype int comes first here
    assert backend.calls[1].params.regex == r"[-+]?[0-9]+[ \n]*"


def test_select_with_a_method() -> None:
    scores = {"France": [-1.0, -9.0], "Italy": [-2.0, -2.0]}
    backend = sgl.FakeBackend([], scores=lambda _, choice: scores[choice])
    assert which_country.run("Paris", backend=backend).text() == "Paris is in France"


def test_join_gathers_variables_in_order() -> None:
    backend = sgl.FakeBackend([" 1\n", " 2\n", " 3\n"])
    state = parallel_sample.run("How many?", backend=backend)
    assert sorted(state["answer"]) == [" 1", " 2", " 3"]

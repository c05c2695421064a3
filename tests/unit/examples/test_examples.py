"""Every example as a program with known answers: exact results, no server."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import examples
import rhizome as rz
from examples import (
    describe_images,
    few_shot_qa,
    generative_agents,
    json_character,
    llm_judge,
    multi_turn_chat,
    rag,
    react_agent,
    self_consistency,
    skeleton_of_thought,
    tree_of_thought,
)

NAMES = sorted(p.stem for p in Path(examples.__file__).parent.glob("*.py") if p.stem not in ("__init__", "connect"))


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    yield
    rz.set_default_backend(None)


def use(answers: Any, **more: Any) -> rz.FakeBackend:
    backend = rz.FakeBackend(answers, **more)
    rz.set_default_backend(backend)
    return backend


def prefers(*likely: str) -> Any:
    return lambda _, choice: [-1.0 if choice in likely else -9.0]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_as_a_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = '{"name": "x", "house": "Gryffindor", "age": 1, "wand": {"wood": "oak", "length": 9}, "alive": true}'
    use(lambda *_: text if name == "json_character" else " 7.\n")
    importlib.import_module(f"examples.{name}").main()
    assert capsys.readouterr().out


def test_two_pictures_are_described_and_compared() -> None:
    ending = " Answer in a few words.\nASSISTANT:"
    backend = use(
        {
            f"the first picture show?{ending}": "A red disc.\n",
            f"the second picture show?{ending}": "A blue square.\n",
            "in one sentence.\nASSISTANT:": "Shape.\n",
        },
        scores=prefers("second"),
    )
    state = describe_images.compare.run(**describe_images.PICTURES)
    assert state["description"] == ["A red disc.", "A blue square."]
    assert (state["difference"], state["corners"]) == ("Shape.", "second")
    assert [len(call.prompt.images) for call in backend.calls if call.kind == "generate"] == [2, 2, 2]


def test_the_drawn_pictures_are_pictures() -> None:
    disc, square = (Image.open(io.BytesIO(data)).convert("RGB") for data in describe_images.PICTURES.values())
    middle, corner = (describe_images.SIZE // 2,) * 2, (describe_images.SIZE // 5,) * 2
    assert [disc.getpixel(middle), square.getpixel(middle)] == [describe_images.RED, describe_images.BLUE]
    assert [disc.getpixel(corner), square.getpixel(corner)] == [describe_images.WHITE, describe_images.BLUE]


def test_few_shot_qa_sends_its_examples_once() -> None:
    backend = use(
        {"capital of France?\nA:": " Paris\n\nQ:", "the largest?\nA:": " Jupiter\n", "has a week?\nA:": " Seven\n"}
    )
    states = few_shot_qa.few_shot_qa.run_batch([{"question": q} for q in few_shot_qa.QUESTIONS])
    assert [s["answer"] for s in states] == [" Paris", " Jupiter", " Seven"]
    assert backend.prefixes == ["".join(f"Q: {q}\nA: {a}\n\n" for q, a in few_shot_qa.SHOTS) + "Q: "]


def test_react_runs_its_tools_and_finishes() -> None:
    tools = iter(["lookup", "calculate", "finish"] * 3)
    chosen: dict[str, str] = {}

    def scores(text: str, choice: str) -> list[float]:
        if text and text not in chosen:
            chosen[text] = next(tools)
        return [-1.0 if choice == chosen.get(text) else -9.0]

    use([" find it.\n", "everest]", " double.\n", "2 * 8849]", " done.\n", "17698 metres]"], scores=scores)
    state = react_agent.react.run("How high are two Mount Everests?")
    assert state.ret_value == "17698 metres"
    assert "Action: lookup[everest]\nObservation: Mount Everest is 8849 metres high.\n" in state.text()
    assert "Action: calculate[2 * 8849]\nObservation: 17698\n" in state.text()


def test_the_agents_calculator_does_arithmetic_and_nothing_else() -> None:
    assert react_agent.calculate("(1 + 2) * 4 / 6") == "2"
    assert react_agent.calculate("__import__('os')") == "Error: not arithmetic"
    assert react_agent.calculate("1 / 0").startswith("Error")


def test_tree_of_thought_votes_over_all_leaves() -> None:
    answers = iter(["The answer is 7.", "So 12.", "7", "I get 7 apples."])
    backend = use(lambda prompt, params: "multiply" if params.limit == 48 else next(answers))
    state = tree_of_thought.tree_of_thought.run(tree_of_thought.QUESTION)
    assert state.ret_value == "7"
    assert backend.count() == 6
    assert tree_of_thought.last_number("1,234 and 5.5.") == "5.5"


def test_skeleton_of_thought_writes_all_tips_from_one_skeleton() -> None:
    backend = use({
        "1.": " Eat\n2. Run\n3. Sleep", "about tip 1.\nASSISTANT:": "Eat well.\n",
        "about tip 2.\nASSISTANT:": "Run far.\n", "about tip 3.\nASSISTANT:": "Sleep long.\n",
        "sentence.\nASSISTANT:": "Live.\n",
    })  # fmt: skip
    state = skeleton_of_thought.suggest_tips.run("health")
    assert (state["tip"], state["summary"]) == (["Eat well.", "Run far.", "Sleep long."], "Live.")
    assert "Tip 3: Sleep long.\nSum this up" in state.text()
    assert backend.count() == 5


def test_the_judge_has_one_branch_per_dimension() -> None:
    use(lambda *_: "Fine.\n", scores=prefers("4"))
    state = llm_judge.judge.run(llm_judge.ESSAY)
    assert state.ret_value == {"clarity": 4, "originality": 4, "evidence": 4}
    assert state["verdict"] == "Fine."


async def test_agents_remember_what_they_did() -> None:
    backend = use(lambda prompt, _: f" acts {prompt.text.count('acts')}.", scores=prefers("3"))
    diary = await generative_agents.live()
    assert diary["Ida"] == [(" acts 0", 3), (" acts 1", 3), (" acts 2", 3)]
    assert backend.count() == 9


def test_the_chat_keeps_all_turns() -> None:
    backend = use(["Washington.", "Two.", "The first."])
    state = multi_turn_chat.chat.run(multi_turn_chat.QUESTIONS)
    assert [m["role"] for m in state.messages()] == ["system", *["user", "assistant"] * 3]
    assert backend.calls[-1].prompt.text.startswith(backend.calls[0].prompt.text)


def test_a_character_is_parsed() -> None:
    backend = use(['{"name": "Luna"}'])
    assert json_character.character.run("Luna").ret_value == {"name": "Luna"}
    assert backend.calls[0].params.grammar[0] == "json_schema"


def test_rag_retrieves_the_right_passage() -> None:
    assert "41 metres" in rag.retrieve("How high is the lighthouse?")[0]
    backend = use(lambda *_: "41 metres\n", scores=prefers("[1]"))
    state = rag.answer.run("How high is the lighthouse?")
    assert (state["answer"], state["source"]) == ("41 metres", "[1]")
    assert "[1] The lighthouse of Cape Grey" in backend.calls[0].prompt.text


def test_self_consistency_counts_votes() -> None:
    answers = iter([" 9", " 8", " 9", " none", " 9"])
    use(lambda _, params: " steps" if params.limit == 48 else next(answers))
    assert self_consistency.sampled.run(self_consistency.QUESTION).ret_value == [("9", 3), ("8", 1)]

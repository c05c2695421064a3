"""The workloads of SGLang's paper as programs, on synthetic texts of the same shapes, scaled down by `scale`.

Generations have fixed lengths (end-of-sequence is ignored), so every way of running one does the same work.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rhizome as rz
from benchmarks.program_sections.texts import text

LETTERS = ["A", "B", "C", "D"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A program with the arguments of each of its runs. `prefix_heavy`: most of its prompt tokens are shared."""

    name: str
    program: rz.Function
    arguments: list[dict[str, Any]]
    prefix_heavy: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """How many programs, and the factor for the lengths of texts and generations."""

    programs: int
    factor: float

    def words(self, count: int) -> int:
        return max(4, round(count * self.factor))

    def tokens(self, count: int) -> int:
        return max(2, round(count * self.factor))


def _gen(name: str, tokens: int) -> Any:
    return rz.gen(name, max_tokens=tokens, ignore_eos=True)


def mmlu(scale: Scale) -> Workload:
    """Five worked examples in front of every question, one token of answer."""
    shots = "".join(f"Question: {text(scale.words(60), 'shot', i)}\nAnswer: {LETTERS[i % 4]}\n\n" for i in range(5))

    @rz.function
    def program(s, question):
        s += shots
        s += "Question: " + question + "\nAnswer:" + _gen("answer", 1)

    return Workload("mmlu 5-shot", program, _numbered(scale, "question", 60), True)


def hellaswag(scale: Scale) -> Workload:
    """Examples, a context, and the likeliest of four endings."""
    shots = "".join(f"{text(scale.words(30), 'shot', i)}\n\n" for i in range(20))

    @rz.function
    def program(s, context, endings):
        s += shots
        s += context
        s += rz.select("ending", [" " + e for e in endings])

    arguments = [
        {"context": text(scale.words(30), "context", i), "endings": [text(scale.words(10), i, j) for j in range(4)]}
        for i in range(scale.programs)
    ]
    return Workload("hellaswag select", program, arguments, True)


def react(scale: Scale) -> Workload:
    """A recorded agent: thoughts and actions are generated, observations come from the recording."""
    example = text(scale.words(200), "example")

    @rz.function
    def program(s, question, observations):
        s += example
        s += "\nQuestion: " + question
        for i, observation in enumerate(observations):
            s += f"\nThought {i}:" + _gen(f"thought_{i}", scale.tokens(24))
            s += f"\nAction {i}:" + _gen(f"action_{i}", scale.tokens(8)) + f"\nObservation {i}: " + observation
        s += "\nAnswer:" + _gen("answer", scale.tokens(8))

    arguments = [
        {"question": text(scale.words(15), "q", i), "observations": [text(scale.words(40), i, j) for j in range(3)]}
        for i in range(scale.programs)
    ]
    return Workload("react replay", program, arguments, True)


def generative_agents(scale: Scale) -> Workload:
    """Short decisions of characters who live in the same world."""
    world = text(scale.words(120), "world")

    @rz.function
    def program(s, memory):
        s += world
        s += "\nMemory: " + memory + "\nNext action:" + _gen("action", scale.tokens(16))

    return Workload("generative agents", program, _numbered(scale, "memory", 60), True)


def tree_of_thought(scale: Scale) -> Workload:
    """Plans, two solutions of each, a judgment of each solution."""
    shots = text(scale.words(150), "shots")

    @rz.function
    def program(s, question):
        s += shots
        s += "\nQuestion: " + question
        plans = s.fork(2)
        for i, plan in enumerate(plans):
            plan += f"\nPlan {i}:" + _gen("plan", scale.tokens(32))
            solutions = plan.fork(2)
            for j, solution in enumerate(solutions):
                solution += f"\nSolution {j}:" + _gen("solution", scale.tokens(32))
                solution += "\nScore:" + _gen("score", 1)

    return Workload("tree of thought", program, _numbered(scale, "question", 40), True)


def skeleton_of_thought(scale: Scale) -> Workload:
    """A list of points, all points at the same time, a summary."""

    @rz.function
    def program(s, topic):
        s += "Write about this: " + topic + "\nPoints:" + _gen("points", scale.tokens(32))
        branches = s.fork(4)
        for i, branch in enumerate(branches):
            branch += f"\nPoint {i + 1} in detail:" + _gen("detail", scale.tokens(32))
        branches.join()
        s += "".join(f"\n{detail}" for detail in s["detail"]) + "\nIn short:" + _gen("summary", scale.tokens(24))

    return Workload("skeleton of thought", program, _numbered(scale, "topic", 30))


def judge(scale: Scale) -> Workload:
    """One essay, a branch per dimension, a verdict."""

    @rz.function
    def program(s, essay):
        s += "Judge this essay.\n" + essay
        branches = s.fork(6)
        for i, branch in enumerate(branches):
            branch += f"\nDimension {i + 1}:" + _gen("judgment", scale.tokens(24))
        branches.join()
        s += "".join(f"\n{j}" for j in s["judgment"]) + "\nVerdict:" + _gen("verdict", scale.tokens(24))

    return Workload("llm judge", program, _numbered(scale, "essay", 250), True)


def json_decoding(scale: Scale) -> Workload:
    """A document and a schema that its JSON summary has to follow."""
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["letter", "report", "story"]}, "pages": {"enum": [1, 2, 3]},
                       "signed": {"type": "boolean"}, "urgent": {"type": "boolean"}},
        "required": ["kind", "pages", "signed", "urgent"], "additionalProperties": False,
    }  # fmt: skip

    @rz.function
    def program(s, document):
        s += "Summarize as JSON.\n" + document + "\nJSON: "
        s += rz.gen("json", max_tokens=64, json_schema=json.dumps(schema))

    return Workload("json decoding", program, _numbered(scale, "document", 100))


def _turns(scale: Scale, name: str, tokens: int) -> Workload:
    @rz.function
    def program(s, questions):
        for i, question in enumerate(questions):
            s += rz.user(question)
            s += rz.assistant(_gen(f"answer_{i}", tokens))

    arguments = [{"questions": [text(scale.words(60), name, i, j) for j in range(4)]} for i in range(scale.programs)]
    return Workload(name, program, arguments)


def multi_turn_short(scale: Scale) -> Workload:
    """Four turns with short answers."""
    return _turns(scale, "multi-turn short", scale.tokens(8))


def multi_turn_long(scale: Scale) -> Workload:
    """Four turns with long answers: most of the work is generation."""
    return _turns(scale, "multi-turn long", scale.tokens(64))


def rag(scale: Scale) -> Workload:
    """Passages from a small corpus before each question; popular passages come first, so prefixes recur."""
    corpus = [text(scale.words(120), "passage", i) for i in range(4)]

    @rz.function
    def program(s, passages, question):
        s += "Answer from these passages.\n" + "\n".join(corpus[i] for i in passages)
        s += "\nQuestion: " + question + "\nAnswer:" + _gen("answer", scale.tokens(16))

    arguments = [
        {"passages": [0, 1 + i % 3], "question": text(scale.words(12), "question", i)} for i in range(scale.programs)
    ]
    return Workload("rag", program, arguments, True)


def _numbered(scale: Scale, name: str, words: int) -> list[dict[str, Any]]:
    return [{name: text(scale.words(words), name, i)} for i in range(scale.programs)]


WORKLOADS: tuple[Callable[[Scale], Workload], ...] = (
    mmlu, hellaswag, react, generative_agents, tree_of_thought, skeleton_of_thought, judge, json_decoding,
    multi_turn_short, multi_turn_long, rag,
)  # fmt: skip

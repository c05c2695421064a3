"""ReAct: the model thinks, chooses a tool, the program runs it, and the observation goes back into the text."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

import rhizome as rz
from examples.connect import connect

FACTS = {"everest": "Mount Everest is 8849 metres high.", "rhine": "The Rhine is 1230 kilometres long."}
EXAMPLE = (
    "Question: How long are two Rhines?\n"
    "Thought: I need the length of the Rhine.\nAction: lookup[rhine]\nObservation: The Rhine is 1230 kilometres long.\n"
    "Thought: Now I double it.\nAction: calculate[2 * 1230]\nObservation: 2460\n"
    "Thought: I know the answer.\nAction: finish[2460 kilometres]\n\n"
)
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def lookup(name: str) -> str:
    return FACTS.get(name.strip().lower(), "Nothing found.")


def calculate(expression: str) -> str:
    """The four operations on numbers, and nothing else."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        raise ValueError("not arithmetic")

    try:
        return f"{value(ast.parse(expression.strip(), mode='eval').body):g}"
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError) as fault:
        return f"Error: {fault}"


TOOLS: dict[str, Callable[[str], str]] = {"lookup": lookup, "calculate": calculate}


@rz.function
def react(s, question, max_steps=4):
    s += EXAMPLE + "Question: " + question + "\n"
    for step in range(max_steps):
        s += "Thought:" + rz.gen(f"thought_{step}", max_tokens=32, stop="\n") + "\n"
        s += "Action: " + rz.select(f"tool_{step}", [*TOOLS, "finish"])
        s += "[" + rz.gen(f"argument_{step}", max_tokens=16, stop=["]", "\n"]) + "]\n"
        tool, argument = s[f"tool_{step}"], s[f"argument_{step}"]
        if tool == "finish":
            return argument
        s += "Observation: " + TOOLS[tool](argument) + "\n"
    return None


def main() -> None:
    state = react.run("How high are two Mount Everests?", temperature=0)
    print(state.text())
    print("Answer:", state.ret_value)


if __name__ == "__main__":
    connect(__doc__)
    main()

"""Tree of thought on grade-school maths: propose plans, execute each, reflect, and let the answers vote.

Every level forks, so all thoughts below a node share its text: the server computes it once.
"""

from __future__ import annotations

import re
from collections import Counter

import rhizome as rz
from examples.connect import connect

QUESTION = "Anna has 3 boxes with 4 apples each. She gives 5 apples away. How many apples are left?"


@rz.function
def tree_of_thought(s, question, width=2):
    s += rz.system("You solve maths problems step by step.")
    s += rz.user("Question: " + question + "\nGive a short plan. Do not compute yet.")
    plans = s.fork(width)
    plans += rz.assistant(rz.gen("plan", max_tokens=48, temperature=0.7))
    answers = []
    for plan in plans:
        plan += rz.user("Carry out the plan and end with: The answer is N.")
        solutions = plan.fork(width)
        solutions += rz.assistant(rz.gen("solution", max_tokens=64, temperature=0.7))
        answers += [last_number(solution["solution"]) for solution in solutions]
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def last_number(text: str) -> str | None:
    """The last number of a text, as it stands there."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return numbers[-1] if numbers else None


def main() -> None:
    state = tree_of_thought.run(QUESTION)
    print(QUESTION, "\nThe vote:", state.ret_value)
    print(state.report())


if __name__ == "__main__":
    connect(__doc__)
    main()

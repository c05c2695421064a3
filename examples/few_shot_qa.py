"""Few-shot questions: a constant prefix of examples, many questions at a time, the prefix computed once."""

from __future__ import annotations

import rhizome as rz
from examples.connect import connect

SHOTS = (
    ("What is the capital of Germany?", "Berlin"),
    ("Which metal is liquid at room temperature?", "Mercury"),
    ("How many legs has a spider?", "Eight"),
)
QUESTIONS = ("What is the capital of France?", "Which planet is the largest?", "How many days has a week?")


@rz.function
def few_shot_qa(s, question):
    for asked, answer in SHOTS:
        s += "Q: " + asked + "\nA: " + answer + "\n\n"
    s += "Q: " + question + "\nA:" + rz.gen("answer", max_tokens=16, stop="\n")


def main() -> None:
    states = few_shot_qa.run_batch([{"question": q} for q in QUESTIONS], temperature=0, progress_bar=True)
    for question, state in zip(QUESTIONS, states, strict=True):
        print(f"{question}{state['answer']}")


if __name__ == "__main__":
    connect(__doc__)
    main()

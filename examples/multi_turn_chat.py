"""A conversation of several turns, shown while it grows."""

from __future__ import annotations

import rhizome as rz
from examples.connect import connect

QUESTIONS = ("What is the capital of the United States?", "List two attractions there.", "Which one is older?")


@rz.function
def chat(s, questions):
    s += rz.system("You are a helpful assistant. You answer briefly.")
    for i, question in enumerate(questions):
        s += rz.user(question)
        s += rz.assistant(rz.gen(f"answer_{i}", max_tokens=48))


def main() -> None:
    state = chat.run(QUESTIONS, temperature=0, stream=True)
    for i, question in enumerate(QUESTIONS):
        print(f"\n> {question}")
        for piece in state.text_iter(f"answer_{i}"):
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    connect(__doc__)
    main()

"""Self-consistency: several samples of one chain of thought, and the answer that most of them reach."""

from __future__ import annotations

import re
from collections import Counter

import rhizome as rz
from examples.connect import connect

QUESTION = "A farmer has 17 sheep. All but 9 run away. How many are left?"


@rz.function
def sampled(s, question, samples=5):
    s += "Q: " + question + "\nA: Let us think step by step."
    branches = s.fork(samples)
    branches += rz.gen("reasoning", max_tokens=48, temperature=0.8, stop="\nQ:") + "\nSo the answer is"
    branches += rz.gen("answer", max_tokens=6, temperature=0, stop=["\n", "."])
    branches.join()
    numbers = [n for text in s["answer"] if (n := re.search(r"\d+", text))]
    votes = Counter(n.group() for n in numbers)
    return votes.most_common()


def main() -> None:
    state = sampled.run(QUESTION)
    print(QUESTION)
    for answer, votes in state.ret_value:
        print(f"  {answer}: {votes} of {len(state['answer'])}")


if __name__ == "__main__":
    connect(__doc__)
    main()

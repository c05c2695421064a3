"""A judge with several dimensions: one essay, one branch per dimension, one verdict from all of them."""

from __future__ import annotations

import rhizome as rz
from examples.connect import connect

DIMENSIONS = {
    "clarity": "Is it easy to follow?",
    "originality": "Does it say something new?",
    "evidence": "Are its claims supported?",
}
ESSAY = (
    "Trees cool our cities. A street with old trees is up to four degrees cooler in summer than one without, because "
    "leaves give shade and evaporate water. Planting more of them costs little and pays for decades."
)


@rz.function
def judge(s, essay):
    s += rz.system("You judge essays. You are strict and brief.")
    s += rz.user("Here is an essay.\n\n" + essay)
    branches = s.fork(len(DIMENSIONS))
    for branch, (name, question) in zip(branches, DIMENSIONS.items(), strict=True):
        branch += rz.user(f"Judge its {name}. {question}")
        branch += rz.assistant(
            rz.gen("judgment", max_tokens=40, stop="\n")
            + " Score: "
            + rz.select("score", [str(n) for n in range(1, 6)])
        )
    branches.join()
    s += rz.user("".join(f"{d}: {j}\n" for d, j in zip(DIMENSIONS, s["judgment"], strict=True)) + "Give a verdict.")
    s += rz.assistant(rz.gen("verdict", max_tokens=40, stop="\n"))
    return dict(zip(DIMENSIONS, map(int, s["score"]), strict=True))


def main() -> None:
    state = judge.run(ESSAY, temperature=0)
    for (name, score), judgment in zip(state.ret_value.items(), state["judgment"], strict=True):
        print(f"{name:<12} {score}  {judgment}")
    print(state["verdict"])


if __name__ == "__main__":
    connect(__doc__)
    main()

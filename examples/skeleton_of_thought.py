"""Skeleton of thought: list the tips first, then write all paragraphs at the same time, then sum up."""

from __future__ import annotations

import rhizome as rz
from examples.connect import connect


@rz.function
def suggest_tips(s, topic, count=3):
    s += rz.user(f"Name {count} short tips for {topic}, numbered, one a line.")
    s += rz.assistant("1." + rz.gen("skeleton", max_tokens=64))
    branches = s.fork(count)
    for i, branch in enumerate(branches):
        branch += rz.user(f"Write one sentence about tip {i + 1}.")
        branch += rz.assistant(rz.gen("tip", max_tokens=40, stop="\n"))
    branches.join()
    s += rz.user("\n".join(f"Tip {i + 1}: {tip}" for i, tip in enumerate(s["tip"])) + "\nSum this up in one sentence.")
    s += rz.assistant(rz.gen("summary", max_tokens=40, stop="\n"))


def main() -> None:
    state = suggest_tips.run("staying healthy", temperature=0)
    for tip in state["tip"]:
        print("-", tip)
    print(state["summary"])


if __name__ == "__main__":
    connect(__doc__)
    main()

"""Answers from documents: find the passages that share most words with the question, and answer from them alone."""

from __future__ import annotations

import math
import re
from collections import Counter

import rhizome as rz
from examples.connect import connect

DOCUMENTS = (
    "The lighthouse of Cape Grey was built in 1874. It is 41 metres high and has 198 steps.",
    "The museum in the harbour is open from Tuesday to Sunday, from ten to six. Children pay nothing.",
    "The ferry to Grey Island leaves every two hours. The crossing takes 35 minutes.",
    "In winter the coast road is closed when the wind is stronger than 90 kilometres per hour.",
)
QUESTIONS = ("How high is the lighthouse?", "How long does the ferry take to cross?")


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def retrieve(question: str, count: int = 2) -> list[str]:
    """The documents that fit best, by the rarity of the words that they share with the question."""
    held = [words(document) for document in DOCUMENTS]
    rarity = {w: math.log(1 + len(held) / sum(w in h for h in held)) for h in held for w in h}
    asked = words(question)
    scores = [sum(rarity[w] for w in asked if w in h) for h in held]
    best = sorted(range(len(DOCUMENTS)), key=lambda i: -scores[i])[:count]
    return [DOCUMENTS[i] for i in best]


@rz.function
def answer(s, question):
    s += rz.system("Answer from the passages alone. Say 'I do not know' when they do not tell.")
    passages = "\n".join(f"[{i + 1}] {text}" for i, text in enumerate(retrieve(question)))
    s += rz.user("Passages:\n" + passages + "\n\nQuestion: " + question)
    s += rz.assistant(rz.gen("answer", max_tokens=32, stop="\n") + " Source: " + rz.select("source", ["[1]", "[2]"]))


def main() -> None:
    for question in QUESTIONS:
        state = answer.run(question, temperature=0)
        print(f"{question}\n  {state['answer']} {state['source']}")


if __name__ == "__main__":
    connect(__doc__)
    main()

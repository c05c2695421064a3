"""Generative agents, replayed: a day of small decisions by several characters, all moments of an hour at once.

Asynchronous: every character is a program state on one event loop.
"""

from __future__ import annotations

import asyncio

import rhizome as rz
from examples.connect import connect

VILLAGE = (
    "This is the village of Elm. It has a bakery, a school, a forge and a market square. People greet each other, "
    "keep their promises and talk about the harvest.\n"
)
PEOPLE = {
    "Mara": "the baker, cheerful and early up",
    "Otto": "the smith, silent and strong",
    "Ida": "the teacher, curious",
}
HOURS = ("07:00", "12:00", "18:00")


@rz.function
async def moment(s, name, trait, hour, memory):
    s += VILLAGE + f"{name} is {trait}.\n"
    s += f"Memory of {name}: {memory}\n"
    s += f"It is {hour}. In one sentence, {name} now" + rz.gen("action", max_tokens=24, stop=[".", "\n"]) + ".\n"
    s += f"On a scale of 1 to 5, how important is this to {name}? " + rz.select("weight", ["1", "2", "3", "4", "5"])
    return await s["action"], int(await s["weight"])


async def live() -> dict[str, list[tuple[str, int]]]:
    """What everyone does, hour after hour, with how much it matters to them."""
    diary: dict[str, list[tuple[str, int]]] = {name: [] for name in PEOPLE}
    for hour in HOURS:
        arguments = [
            {
                "name": name,
                "trait": trait,
                "hour": hour,
                "memory": "; ".join(a for a, _ in diary[name]) or "nothing yet",
            }
            for name, trait in PEOPLE.items()
        ]
        for state, args in zip(await moment.arun_batch(arguments, temperature=0), arguments, strict=True):
            diary[args["name"]].append(state.ret_value)
    return diary


def main() -> None:
    for name, day in asyncio.run(live()).items():
        print(name)
        for hour, (action, weight) in zip(HOURS, day, strict=True):
            print(f"  {hour}  ({weight}) {action.strip()}")


if __name__ == "__main__":
    connect(__doc__)
    main()

"""A character as JSON: the text has the schema's form by construction, so it can be parsed without a fallback."""

from __future__ import annotations

import json

import rhizome as rz
from examples.connect import connect

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "house": {"enum": ["Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff"]},
        "age": {"type": "integer"},
        "wand": {
            "type": "object",
            "properties": {"wood": {"type": "string"}, "length": {"type": "number"}},
            "required": ["wood", "length"],
        },
        "alive": {"type": "boolean"},
    },
    "required": ["name", "house", "age", "wand", "alive"],
    "additionalProperties": False,
}


@rz.function
def character(s, name):
    s += rz.user(f"{name} is a character in Harry Potter. Describe this character as JSON.")
    s += rz.assistant(rz.gen("character", max_tokens=128, json_schema=SCHEMA))
    return json.loads(s["character"])


def main() -> None:
    names = ("Hermione Granger", "Draco Malfoy", "Luna Lovegood")
    for state in character.run_batch([{"name": name} for name in names], temperature=0):
        print(json.dumps(state.ret_value))


if __name__ == "__main__":
    connect(__doc__)
    main()

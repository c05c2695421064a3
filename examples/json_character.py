"""A character as JSON: the text has the schema's form by construction, so it can be parsed without a fallback.

Strings and numbers are bounded: a model that does not find an end must not run into `max_tokens` in the middle of one.
"""

from __future__ import annotations

import json

import rhizome as rz
from examples.connect import connect

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "house": {"enum": ["Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 1000},
        "wand": {
            "type": "object",
            "properties": {
                "wood": {"type": "string", "maxLength": 20},
                "inches": {"type": "integer", "minimum": 1, "maximum": 30},
            },
            "required": ["wood", "inches"],
            "additionalProperties": False,
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

"""The work of constrained decoding: documents as regexes and as JSON schemas, of the shapes that SGLang publishes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import jsonschema

_WORD = r"[a-zA-Z0-9 ]{1,16}"


def _lines(*lines: str) -> str:
    """An object spread over lines, as SGLang's tasks write it."""
    return r"\{\n" + r",\n".join(f"    {line}" for line in lines) + r"\n\}"


CHARACTER = _lines(
    f'"name": "{_WORD}"',
    '"house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)"',
    '"blood status": "(Pure-blood|Half-blood|Muggle-born)"',
    '"occupation": "(student|teacher|auror|ministry of magic|death eater|order of the phoenix)"',
    rf'"wand": \{{\n        "wood": "{_WORD}",\n        "core": "{_WORD}",\n'
    r'        "length": [0-9]{1,2}\.[0-9]\n    \}',
    '"alive": "(Alive|Deceased)"',
    f'"patronus": "{_WORD}"',
    f'"bogart": "{_WORD}"',
)
CITY = _lines(
    f'"name": "{_WORD}"',
    f'"country": "{_WORD}"',
    r'"latitude": [-+]?[0-9]{1,2}\.[0-9]{1,2}',
    '"population": [1-9][0-9]{1,7}',
    rf'"top 3 landmarks": \["{_WORD}", "{_WORD}", "{_WORD}"\]',
)
EXTRACTION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 24},
        "severity": {"enum": ["low", "medium", "high", "critical"]},
        "reporter": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 16}, "internal": {"type": "boolean"}},
            "required": ["name", "internal"],
            "additionalProperties": False,
        },
        "affected_versions": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "reproducible": {"type": "boolean"},
    },
    "required": ["title", "severity", "reporter", "affected_versions", "reproducible"],
    "additionalProperties": False,
}
LONG: dict[str, Any] = {
    "type": "object",
    "properties": {
        "employees": {
            "type": "array",
            "minItems": 4,
            "maxItems": 4,
            "items": {
                "type": "object",
                "properties": {
                    "first_name": {"type": "string", "maxLength": 10},
                    "last_name": {"type": "string", "maxLength": 10},
                    "department": {"enum": ["engineering", "sales", "operations"]},
                    "years_with_the_company": {"type": "integer", "minimum": 0, "maximum": 40},
                },
                "required": ["first_name", "last_name", "department", "years_with_the_company"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["employees"],
    "additionalProperties": False,
}
_NAMES = (
    "Harry Potter", "Hermione Granger", "Ron Weasley", "Albus Dumbledore", "Severus Snape", "Rubeus Hagrid",
    "Draco Malfoy", "Ginny Weasley", "Sirius Black", "Remus Lupin", "Paris", "London", "Tokyo", "Nairobi", "Lima",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of document."""

    constraint: dict[str, str]
    """Of `sampling_params`."""
    question: str
    max_new_tokens: int

    def prompts(self, count: int) -> list[str]:
        """As many, no two equal."""
        return [f"{self.question} {_NAMES[i % len(_NAMES)]} (case {i}):\n" for i in range(count)]

    def fits(self, text: str) -> bool:
        """Whether a finished document is what the constraint asks for, judged by libraries of its own."""
        if pattern := self.constraint.get("regex"):
            return re.fullmatch(pattern, text) is not None
        try:
            jsonschema.validate(json.loads(text), json.loads(self.constraint["json_schema"]))
        except (ValueError, jsonschema.ValidationError):
            return False
        return True


TASKS = {
    "character (regex)": Task({"regex": CHARACTER}, "A character of the books, as JSON, please:", 220),
    "city (regex)": Task({"regex": CITY}, "Facts about a city, as JSON, please:", 160),
    "extraction (schema)": Task({"json_schema": json.dumps(EXTRACTION)}, "The bug report, as JSON, please:", 120),
    "long (schema)": Task({"json_schema": json.dumps(LONG)}, "The staff of the company of", 260),
}

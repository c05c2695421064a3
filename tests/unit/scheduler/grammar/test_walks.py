"""Random walks through the masks: whatever a model would choose, the text satisfies the grammar.

The judges are jsonschema and `regex`, whose Unicode is as new as the engine's; \\d is 0 to 9 here.
"""

from __future__ import annotations

import json

import jsonschema
import pytest

from tests.unit.scheduler.grammar.random_schemas import random_schema
from tests.unit.scheduler.grammar.regexes import REGEXES, fits
from tests.unit.scheduler.grammar.tiny import of_regex, of_schema, walk

SCHEMAS = 220


@pytest.mark.parametrize("seed", range(SCHEMAS))
def test_what_a_schema_lets_through_satisfies_it(seed: int) -> None:
    schema = random_schema(seed)
    judge = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    text = walk(of_schema(schema, max_whitespace=seed % 3), seed, way_out='"}]x@')
    judge.validate(json.loads(text))


@pytest.mark.parametrize("pattern", REGEXES)
def test_what_a_regex_lets_through_matches_it(pattern: str) -> None:
    grammar = of_regex(pattern)
    for seed in range(4):
        text = walk(grammar, seed, most_tokens=15, way_out=pattern)
        assert fits(pattern, text), text


def test_the_lists_are_as_long_as_they_should_be() -> None:
    assert len({*REGEXES}) >= 60
    assert len({json.dumps(random_schema(seed), sort_keys=True) for seed in range(SCHEMAS)}) >= 200

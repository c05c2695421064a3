"""What a model that knows nothing writes under a grammar fits the grammar, judged by jsonschema and `regex`.

Scheduler, grammars and a real engine of random weights in one process, sampling at temperature 1: every grammar with
and without jumps. White space, plans ahead and sizes of pages take turns over the cases.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.scheduler.grammar import Grammar
from shared.messages.generation import LENGTH, STOPPED
from shared.sampling import NEUTRAL
from tests.fakes.real_engine import real_driver
from tests.fakes.scheduler_driver import EOS, Output
from tests.unit.scheduler.grammar.random_schemas import random_schema
from tests.unit.scheduler.grammar.regexes import REGEXES, fits
from tests.unit.scheduler.grammar.schema_rows import ROWS
from tests.unit.scheduler.grammar.tiny import STOP, of_regex, of_schema, vocabulary

SCHEMAS: list[Any] = [row[1] for row in ROWS] + [random_schema(1000 + seed) for seed in range(300)]
MOST, LOTS = 400, 6
LOT_AND_WAY = pytest.mark.parametrize(
    ("lot", "way"),
    [
        (lot, (jump, (lot + jump) % 3 + 1, (1, 16)[(lot // 3 + jump) % 2]))
        for lot in range(LOTS)
        for jump in (False, True)
    ],
)
"""Which grammars; jumps on, plans ahead, page size. Every pair of these three comes up."""
WAY_OUT = {'"': 4.0, "}": 4.0, "]": 4.0}
"""A random model hardly ever ends a string, a list or an object by itself."""


@dataclass(frozen=True)
class Case:
    """A grammar and its source."""

    source: Any
    grammar: Grammar
    closing: str = ""
    """Characters that lead to an end, beside those of JSON."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary().size, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
            eos_token_id=None, bos_token_id=None,
        )
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    return path


def generate(folder: Path, cases: Sequence[Case], way: tuple[bool, int, int]) -> list[Output]:
    jump, depth, page_size = way
    assert STOP == EOS
    driver = real_driver(
        folder, page_size=page_size, chunk=64, depth=depth, pool_tokens=4096, disable_jump_forward=not jump
    )
    handles = []
    for n, case in enumerate(cases):
        sampling = dataclasses.replace(NEUTRAL, temperature=1.0, seed=n, logit_bias=bias(case.closing))
        prompt = [3 + (7 * n + k) % 400 for k in range(1 + n % 40)]
        handles.append(driver.submit(prompt, MOST, sampling=sampling, grammar=case.grammar))
    driver.run()
    driver.check()
    assert any(plan.ext_forced is not None for plan in driver.history) == jump
    return [driver.outputs[handle] for handle in handles]


def bias(closing: str) -> dict[str, float]:
    """Toward the ends of JSON's values and of the text."""
    wanted = WAY_OUT | dict.fromkeys(closing, 4.0)
    texts = [data.decode(errors="replace") for data in vocabulary().token_bytes]
    return {str(STOP): 5.0} | {str(i): wanted[text] for i, text in enumerate(texts) if text in wanted}


def texts(outputs: Sequence[Output]) -> list[str | None]:
    """The text of each output that ended by itself, None for those that ran into the limit; most have to end."""
    assert [output.error for output in outputs if output.error is not None] == []
    assert {output.finish for output in outputs} <= {STOPPED, LENGTH}
    assert all(len(output.tokens) == MOST for output in outputs if output.finish == LENGTH)
    assert sum(output.finish == STOPPED for output in outputs) >= 0.9 * len(outputs)
    return [vocabulary().text_of(output.tokens).decode() if output.finish == STOPPED else None for output in outputs]


@LOT_AND_WAY
def test_json_that_ends_satisfies_its_schema(folder: Path, lot: int, way: tuple[bool, int, int]) -> None:
    cases = [Case(schema, of_schema(schema, max_whitespace=n % 3), "x@") for n, schema in enumerate(SCHEMAS[lot::LOTS])]
    for case, text in zip(cases, texts(generate(folder, cases, way)), strict=True):
        if text is not None:
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.Draft202012Validator(case.source, format_checker=checker).validate(json.loads(text))


@LOT_AND_WAY
def test_text_that_ends_matches_its_regex(folder: Path, lot: int, way: tuple[bool, int, int]) -> None:
    cases = [Case(pattern, of_regex(pattern), pattern) for pattern in REGEXES[lot::LOTS]]
    for case, text in zip(cases, texts(generate(folder, cases, way)), strict=True):
        assert text is None or fits(case.source, text), (case.source, text)


def test_there_are_enough_cases() -> None:
    assert len({json.dumps(schema, sort_keys=True) for schema in SCHEMAS}) >= 200
    assert len({*REGEXES}) >= 60

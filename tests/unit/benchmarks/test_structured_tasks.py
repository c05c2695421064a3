"""The judge of the documents that `benchmarks.structured` counts."""

from __future__ import annotations

import json

import pytest

from benchmarks.structured_sections.tasks import TASKS

BUG = {
    "title": "Crash", "severity": "low", "reporter": {"name": "Ann", "internal": True}, "affected_versions": [1, 2],
    "reproducible": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "{", "{}", json.dumps({**BUG, "severity": "odd"}), json.dumps({**BUG, "title": "x" * 25})]
)
def test_a_document_that_breaks_its_schema_is_found(text: str) -> None:
    assert not TASKS["extraction (schema)"].fits(text)


def test_a_document_of_its_schema_fits() -> None:
    assert TASKS["extraction (schema)"].fits(json.dumps(BUG))


def test_a_regex_must_fit_the_whole_document() -> None:
    assert not TASKS["character (regex)"].fits('{\n    "name": "Harry"')

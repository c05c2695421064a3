from __future__ import annotations

from dataclasses import dataclass, field

from docs.generate.__main__ import PAGES, stale
from docs.generate.source import ROOT, field_docs
from shared import messages as m
from shared.subjects import CATALOG


def test_generated_pages_are_current() -> None:
    assert not stale(), "run `make docs`"


def test_every_message_class_is_documented() -> None:
    page = (ROOT / "docs" / "messages.md").read_text()
    assert [name for name in m.__all__ if f"### {name}\n" not in page] == []


def test_every_subject_is_documented() -> None:
    page = (ROOT / "docs" / "subjects.md").read_text()
    assert [entry.pattern for entry in CATALOG if f"`{entry.pattern}`" not in page] == []


def test_links_between_pages_lead_somewhere() -> None:
    assert set(PAGES) <= {path.name for path in (ROOT / "docs").iterdir()}


@dataclass
class Sample:
    """A class to read."""

    first: int
    """What it
    is."""
    second: list[str] = field(default_factory=list)


def test_field_docstrings_and_defaults_are_read_from_the_source() -> None:
    first, second = field_docs(Sample)
    assert (first.name, first.type, first.default, first.doc) == ("first", "int", "", "What it is.")
    assert (second.name, second.type, second.default, second.doc) == ("second", "list[str]", "[]", "")

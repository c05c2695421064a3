"""What reading an answer gives, and what reads a single call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Functions = Mapping[str, dict[str, Any]]
"""JSON schema of the arguments, by name: the functions that a request allows to be called."""


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of this function begins; it is one of the request's."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of the arguments of the call that began last: JSON text as the model wrote it."""

    text: str


Event = str | CallStart | CallArguments
"""A string is content."""


class CallReader(Protocol):
    """Reads one call. Lives until it is `done` or `failed`."""

    done: bool
    """The call is complete."""
    failed: bool
    """What came is no call, or one that was broken off after its start."""
    started: bool
    """`CallStart` was given: what comes now can no longer become content."""
    raw: str
    """What was taken before the start: content, if it turns out to be no call."""

    def feed(self, text: str, at: int, out: list[Event]) -> int:
        """Take from `text[at:]` what belongs to the call; returns the position of the first character that does not.

        It is the end of the text as long as the call is neither done nor failed.
        """

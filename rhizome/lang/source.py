"""Where in the program something was written: the first frame outside of the language's own modules."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

_OWN = ("rhizome.lang", "contextlib")
"""The language's modules, and the one that enters and leaves its `with` blocks."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a program."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.number} in {self.function}"


def here() -> Line | None:
    """The line of user code that called into the language; None when there is none (a bare thread)."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OWN):
        back = frame.f_back
        if back is None:
            return None
        frame = back
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)

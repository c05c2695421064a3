"""docs/walk.md: the path of one request, from the `[walk N]` marks in docstrings."""

from __future__ import annotations

import re
from collections import defaultdict

from docs.generate.markdown import NOTICE
from docs.generate.source import Docstring, docstrings, summary

_INTRO = """\
# The walk of one request

Read these in order to follow a generation from the socket to the model and back.
"""
_MARK = re.compile(r"\[walk (\d+)\]\s*")
_FOLDERS = ("services", "shared", "rhizome")


def render() -> str:
    """The page."""
    steps: dict[int, list[Docstring]] = defaultdict(list)
    for found in docstrings(*_FOLDERS):
        for number in _MARK.findall(found.text):
            steps[int(number)].append(found)
    lines = [NOTICE, "", _INTRO]
    for number in sorted(steps):
        lines += [f"## {number}", ""]
        lines += [f"- {_place(found)}: {_MARK.sub('', summary(found.text))}" for found in steps[number]]
        lines.append("")
    return "\n".join(lines)


def _place(found: Docstring) -> str:
    link = f"[`{found.path}`](../{found.path})"
    return f"{link} `{found.owner}`" if found.owner else link

"""Limits on a regular expression that no engine has to enforce: how long its shortest match is.

A counted repetition of 1,000 inside another one is a million characters of forced text, which an engine would walk
again at every mask. Reads the syntax loosely: what is no regular expression is the engine's to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.errors import InvalidRequest

MAX_SHORTEST_CHARS = 8_192
MAX_CHARS = 65_536
_COUNT = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")
_ESCAPE = re.compile(
    r"\\(?:x\{[^}]*\}|x[0-9A-Fa-f]{2}|u\{[^}]*\}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[pP]\{[^}]*\}|.)", re.S
)
_CLASS = re.compile(r"\[\^?\]?(?:\\.|\[:\^?\w+:\]|\[[^\]]*\]|[^\]\\])*\]", re.S)
_GROUP = re.compile(r"\((?:\?(?:P?<\w*>|[\w-]*:))?")


def check_regex(pattern: str, param: str, where: str = "") -> None:
    """Refuse expressions that are too long or whose repetitions multiply to a long text.

    Raises:
        InvalidRequest: naming the repetition.
    """
    if len(pattern) > MAX_CHARS:
        raise InvalidRequest(f"{param}{where} has {len(pattern):,} characters, the limit is {MAX_CHARS:,}", param=param)
    total = shortest_match(pattern, param, where)
    if total > MAX_SHORTEST_CHARS:
        raise _too_long(total, param, where)


def shortest_match(pattern: str, param: str = "regex", where: str = "") -> int:
    """Characters of the shortest match, for expressions that are well-formed; parts over the limit are refused.

    Raises:
        InvalidRequest: a part's shortest match is over the limit.
    """
    frames = [_Branch()]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "(":
            opened = _GROUP.match(pattern, at)
            assert opened is not None
            frames.append(_Branch())
            at = opened.end()
        elif char == ")":
            at += 1
            if len(frames) > 1:
                _close(frames)
        elif char == "|":
            frames[-1] = _Branch(done=frames[-1].shortest)
            at += 1
        elif char in "*+?":
            _repeat(frames[-1], 1 if char == "+" else 0, param, where)
            at += 1
        elif char == "{" and (count := _COUNT.match(pattern, at)):
            _repeat(frames[-1], int(count[1]), param, f"{where}, at {count[0]} (character {at + 1})")
            at = count.end()
        elif char in "^$":
            at += 1
        else:
            atom = _ESCAPE.match(pattern, at) or (_CLASS.match(pattern, at) if char == "[" else None)
            frames[-1].add(1)
            at = atom.end() if atom else at + 1
    while len(frames) > 1:
        _close(frames)
    return frames[0].shortest


@dataclass(slots=True)
class _Branch:
    """An open group: what its finished branches need at least, and its present branch."""

    done: int | None = None
    length: int = 0
    last: int = 0
    """Length of the last atom, which a repetition would multiply."""

    @property
    def shortest(self) -> int:
        return self.length if self.done is None else min(self.done, self.length)

    def add(self, length: int) -> None:
        self.length, self.last = self.length + length, length


def _close(frames: list[_Branch]) -> None:
    inner = frames.pop()
    frames[-1].add(inner.shortest)


def _repeat(branch: _Branch, least: int, param: str, where: str) -> None:
    """The last atom, `least` times. What may be left out counts too: it may as well be taken."""
    if branch.last * max(least, 1) > MAX_SHORTEST_CHARS:
        raise _too_long(branch.last * max(least, 1), param, where)
    branch.length += branch.last * (least - 1)
    branch.last *= least


def _too_long(length: int, param: str, where: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param}{where}: its shortest match has {length:,} characters, the limit is {MAX_SHORTEST_CHARS:,}",
        param=param,
    )

"""Content and calls told apart in the text of an answer, whatever pieces it comes in.

Held back is only what could still begin a call, and white space that a call may follow: white space beside calls is
dropped, so that the content of an answer with a call is what was said and no more. What looks like a call and is
none becomes content as it was written. Once the arguments of a call have begun it stays a call, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.tokenizer.tool_calls.events import CallReader, Event, Functions

WHITESPACE = " \t\r\n"
_State = Literal["content", "opened", "call", "after", "closed", "ignore"]


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How one family of models marks its calls."""

    begins: tuple[str, ...]
    """Markers that announce calls."""
    end: str
    """The marker behind them; "" when there is none."""
    bare: str
    """A character that opens calls without a marker where it begins a line; "" when none does."""
    reader: Callable[[str, Functions, bool], CallReader | None]
    """(next character, functions, whether it stands directly behind the marker) -> what reads a call that
    begins so; None when none does."""
    inner: tuple[str, ...] = ()
    """Markers inside calls."""


class CallScanner:
    """The state of one answer."""

    def __init__(self, syntax: CallSyntax, functions: Functions, *, only_one: bool) -> None:
        """Args:
        functions: of the request; a call of any other is content.
        only_one: nothing is read after the first call.
        """
        self._syntax, self._functions, self._only_one = syntax, functions, only_one
        self._state: _State = "content"
        self._rest = ""  # not decided yet
        self._raw = ""  # taken since the marker: content, if no call follows
        self._line_start = True  # nothing but white space in this line so far
        self._after_call = False  # nothing but white space since the last call
        self._call: CallReader | None = None

    @property
    def done(self) -> bool:
        """Nothing that comes now is of interest."""
        return self._state == "ignore"

    def add(self, text: str) -> list[Event]:
        """What the next piece of text settles."""
        out: list[Event] = []
        self._rest += text
        while self._rest and self._step(out):
            pass
        return out

    def finish(self) -> list[Event]:
        """What was held back when the text is at its end."""
        out: list[Event] = []
        held = self._raw + self._rest
        if self._state == "call" and self._call is not None and not self._call.started:
            held = self._raw + self._call.raw
        elif self._state not in ("content", "opened"):
            held = ""
        if not (self._after_call and held.strip(WHITESPACE) == ""):
            self._content(held, out)
        return out

    def _step(self, out: list[Event]) -> bool:
        """Decide about the beginning of the rest; False when more text is needed."""
        match self._state:
            case "content":
                return self._search(out)
            case "opened":
                return self._open(out)
            case "call":
                return self._read(out)
            case "after":
                return self._next(out)
            case "closed":
                return self._leave()
            case "ignore":
                self._rest = ""
        return False

    def _search(self, out: list[Event]) -> bool:
        """Content up to the next thing that may open a call."""
        rest = self._rest
        found = [(at, marker) for marker in self._syntax.begins if (at := rest.find(marker)) >= 0]
        at, marker = min(found, default=(self._possible_marker(), ""))
        bare = self._bare(at)
        if bare is not None:
            at, marker = bare, ""
        said = rest[:at].rstrip(WHITESPACE)
        self._content(said, out)
        if bare is None and not marker:
            self._rest = rest[len(said) :]
            return False
        self._raw, self._rest = rest[len(said) : at] + marker, rest[at + len(marker) :]
        self._state = "opened"
        return True

    def _possible_marker(self) -> int:
        """Where the rest ends in the beginning of a marker."""
        rest, first = self._rest, len(self._rest)
        for marker in self._syntax.begins:
            for length in range(min(len(marker) - 1, len(rest)), 0, -1):
                if rest.endswith(marker[:length]):
                    first = min(first, len(rest) - length)
                    break
        return first

    def _bare(self, limit: int) -> int | None:
        """The first opening character before `limit` that begins a line."""
        char, rest = self._syntax.bare, self._rest
        at = rest.find(char, 0, limit) if char else -1
        while at >= 0:
            before = at
            while before and rest[before - 1] in " \t\r":
                before -= 1
            if rest[before - 1] == "\n" if before else self._line_start:
                return at
            at = rest.find(char, at + 1, limit)
        return None

    def _open(self, out: list[Event]) -> bool:
        """The first call behind a marker, perhaps in a list."""
        char = self._rest[0]
        if char in WHITESPACE:
            self._raw, self._rest = self._raw + char, self._rest[1:]
            return True
        self._call = self._syntax.reader(char, self._functions, True)
        if self._call is not None:
            self._state = "call"
        elif char == "[" and not self._raw.endswith("["):
            self._raw, self._rest = self._raw + char, self._rest[1:]
        else:
            self._no_call(self._raw, out)
        return True

    def _read(self, out: list[Event]) -> bool:
        call = self._call
        assert call is not None, "the state says that a call is read"
        at = call.feed(self._rest, 0, out)
        self._rest = self._rest[at:]
        if call.started:
            self._raw = ""
        if call.done or (call.failed and call.started):
            self._after_call = True
            self._state = "ignore" if self._only_one else "after"
        elif call.failed:
            self._no_call(self._raw + call.raw, out)
        return bool(self._rest) or self._state != "call"

    def _next(self, out: list[Event]) -> bool:
        """Behind a call: another one, the end of the list, the end marker, or content."""
        char, end = self._rest[0], self._syntax.end
        if end and self._rest.startswith(end):
            self._rest = self._rest[len(end) :]
            self._to_content()
        elif end and end.startswith(self._rest):
            return False
        elif char == "]":
            self._rest, self._state = self._rest[1:], "closed"
        elif char in WHITESPACE + ",;}":
            self._rest = self._rest[1:]
        elif (call := self._syntax.reader(char, self._functions, False)) is not None:
            self._call, self._state = call, "call"
        else:
            self._to_content()
        return True

    def _leave(self) -> bool:
        """Behind a list: the end marker or content."""
        end = self._syntax.end
        if end and self._rest.startswith(end):
            self._rest = self._rest[len(end) :]
            self._to_content()
        elif end and end.startswith(self._rest):
            return False
        elif self._rest[0] in WHITESPACE + "]}":
            self._rest = self._rest[1:]
        else:
            self._to_content()
        return True

    def _no_call(self, text: str, out: list[Event]) -> None:
        self._raw, self._call, self._state = "", None, "content"
        self._content(text, out)

    def _to_content(self) -> None:
        self._raw, self._call, self._state, self._line_start = "", None, "content", True

    def _content(self, text: str, out: list[Event]) -> None:
        if not text:
            return
        self._after_call = False
        self._line_start = False
        if out and isinstance(out[-1], str):
            out[-1] += text
        else:
            out.append(text)

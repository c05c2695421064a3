"""A recorded run as a tree for the terminal: states, forks, texts, generations with their timings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhizome.lang.errors import LanguageError

Event = dict[str, Any]
_WIDTH = 100


@dataclass(slots=True)
class StateTrace:
    """Events of one state, and its branches by the event that they follow."""

    id: int
    branch: list[int]
    events: list[Event] = field(default_factory=list)
    children: list[StateTrace] = field(default_factory=list)


@dataclass(slots=True)
class RunTrace:
    """One run of a program."""

    id: str
    name: str
    began_s: float
    roots: list[StateTrace] = field(default_factory=list)
    end: Event | None = None


def read_trace(path: str | Path) -> list[RunTrace]:
    """All runs of a file, in order.

    Raises:
        LanguageError: it cannot be read or is no trace.
    """
    runs: dict[str, RunTrace] = {}
    states: dict[tuple[str, int], StateTrace] = {}
    try:
        with Path(path).open(encoding="utf-8") as file:  # its lines end at "\n" only, unlike those of splitlines
            lines = list(file)
    except OSError as fault:
        raise LanguageError(f"{path}: {fault.strerror or fault}") from fault
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            run_id, kind = event["run"], event["event"]
        except (ValueError, KeyError, TypeError) as fault:
            raise LanguageError(f"{path}:{number}: not an event of a trace") from fault
        if kind == "program":
            runs[run_id] = RunTrace(run_id, event["name"], event["at_s"])
        elif run_id not in runs:
            raise LanguageError(f"{path}:{number}: the beginning of run {run_id} is missing")
        elif kind == "state":
            state = states[run_id, event["state"]] = StateTrace(event["state"], event["branch"])
            parent = None if event["parent"] is None else states[run_id, event["parent"]]
            (runs[run_id].roots if parent is None else parent.children).append(state)
        elif kind == "end":
            runs[run_id].end = event
        else:
            states[run_id, event["state"]].events.append(event)
    return list(runs.values())


def show(runs: Iterable[RunTrace]) -> Iterator[str]:
    """Lines of the tree."""
    for run in runs:
        end = run.end
        took = f"{end['at_s'] - run.began_s:.3f} s" if end else "still running, or broken off"
        yield f"{run.name}  {took}"
        if end:
            report = {k: v for k, v in end["report"].items() if v}
            yield "  " + "  ".join(f"{k}={v}" for k, v in report.items())
            if end["error"]:
                yield f"  ! {end['error']}"
        for root in run.roots:
            yield from _state(root, "  ", "  ", run.began_s)


def _state(state: StateTrace, head: str, indent: str, began_s: float) -> Iterator[str]:
    label = "state" if not state.branch else f"branch {'.'.join(map(str, state.branch))}"
    yield f"{head}{label}"
    for event in state.events:
        if event["event"] != "fork":
            yield f"{indent}│ {event['at_s'] - began_s:7.3f}  {_line(event)}"
    for child in state.children:
        last = child is state.children[-1]
        yield from _state(child, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "), began_s)


def _line(event: Event) -> str:
    kind = event["event"]
    if kind == "text":
        role = f"[{event['role']}] " if event.get("role") else ""
        return _short(f"text   {role}{event['text']!r}")
    if kind in ("gen", "select"):
        facts = f"{event['seconds']:.3f} s, {event['prompt_tokens']}→{event['completion_tokens']} tokens"
        if event.get("cached_tokens"):
            facts += f", {event['cached_tokens']} cached"
        if event.get("speculated"):
            facts = "from a guess"
        shown = _short(f"{kind:<6} {event['name']} = {event['text']!r}")
        return f"{shown}  ({facts})"
    if kind == "hint":
        return f"hint   {event.get('chars', 0)} characters sent ahead" + (
            f": {event['error']}" if "error" in event else ""
        )
    return _short(f"{kind:<6} {event.get('error', '')}")


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"

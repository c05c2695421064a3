"""`python -m rhizome.models [MODEL] [--link PATH]`: fetch a model now and print its directory.

With `--link` a symbolic link to the directory is left at a fixed place: how the containers find the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rhizome.models.resolve import DEFAULT_MODEL, resolve_model
from shared.errors import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rhizome.models", description="Fetch a model into the cache.")
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="directory or hub id (default: %(default)s)")
    parser.add_argument("--link", type=Path, metavar="PATH", help="leave a symbolic link to the model's directory here")
    args = parser.parse_args()
    try:
        folder = resolve_model(args.model, lambda line: print(line, file=sys.stderr, flush=True))
    except ConfigError as fault:
        print(f"rhizome.models: {fault.message}", file=sys.stderr)
        return 2
    if args.link:
        fresh = args.link.with_name(f".{args.link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder)
        fresh.replace(args.link)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

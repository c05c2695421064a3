"""`rhizome`: the command line. `rhizome trace show FILE` prints recorded programs; `rhizome serve` starts a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args = sys.argv[1:] if argv is None else list(argv)
    if args[:1] == ["serve"]:
        from rhizome.launch_server import main as serve

        return serve(args[1:])
    parser = argparse.ArgumentParser(prog="rhizome", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="start a whole deployment (rhizome serve --help lists its flags)")
    trace = commands.add_parser("trace", help="recorded runs of programs").add_subparsers(dest="what", required=True)
    shown = trace.add_parser("show", help="print a recording as a tree")
    shown.add_argument("file")
    shown.add_argument("--run", help="only the runs of the program of this name")
    return _show(parser.parse_args(args))


def _show(args: argparse.Namespace) -> int:
    from rhizome.lang.errors import LanguageError
    from rhizome.lang.trace_view import read_trace, show

    try:
        runs = read_trace(args.file)
    except LanguageError as fault:
        print(f"rhizome: {fault}", file=sys.stderr)
        return 2
    try:
        for line in show(run for run in runs if args.run in (None, run.name)):
            print(line)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has seen enough
    return 0


if __name__ == "__main__":
    sys.exit(main())

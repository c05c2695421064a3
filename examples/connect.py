"""Where the examples generate: a server by its URL, and optionally a file to record the run in."""

from __future__ import annotations

import argparse

import rhizome as rz


def connect(doc: str | None) -> None:
    """Read the command line and set the default backend."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="a Rhizome or SGLang server")
    parser.add_argument("--record", metavar="FILE", help="write a trace for `rhizome trace show FILE`")
    args = parser.parse_args()
    rz.set_default_backend(rz.RuntimeEndpoint(args.url))
    rz.set_default_record(args.record)

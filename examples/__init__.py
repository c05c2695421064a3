"""Programs of the language, each a file of its own: `python -m examples.NAME --url http://127.0.0.1:30000`.

Start a server with `make serve` first. Answers of the small default model are plausible at best; the programs are
the point.
"""

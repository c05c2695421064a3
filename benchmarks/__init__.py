"""Benchmarks: each `python -m benchmarks.<name>` prints tables for people and, as its last line, one JSON document.

`report` writes both, `stack` starts what is measured, `streams` and `load` are the client, `processes` reads CPU time
and memory. A claimed gain is two variants in one run, never two runs.
"""

"""Reference pages made from the code they describe. `python -m docs.generate` writes them, `--check` compares.

Subjects come from `shared.subjects.CATALOG`, messages from the message classes and their docstrings, flags from the
configuration dataclasses, the walk from the `[walk N]` marks in docstrings. Never imported by a service.
"""

"""How two processes share the tests: file by file, and all tests that need the whole machine in one of them.

`make test` asks pytest-xdist for it. A file's tests stay together, as do the fixtures of a module. The deployments of
tests/e2e take every core while they answer, and those of tests/gpu the device's memory: two at a time would be slow
and could fail each other.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

WHOLE_MACHINE = ("tests/e2e/", "tests/gpu/")


class Shares(LoadFileScheduling):
    """xdist's `--dist loadfile`, with the folders WHOLE_MACHINE as if they were one file."""

    def _split_scope(self, nodeid: str) -> str:
        return "the whole machine" if nodeid.startswith(WHOLE_MACHINE) else super()._split_scope(nodeid)

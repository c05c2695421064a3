"""Exec a command so that it cannot outlive the process that started it. Run as a script, by file name.

    python -I -S tether.py PARENT_PID PROGRAM [ARGUMENT ...]

On Linux the kernel is asked to send SIGKILL to this process when its parent ends (PR_SET_PDEATHSIG); that survives
exec, so even a parent killed by SIGKILL leaves no orphan. Done here and not in a `preexec_fn`, because code between
fork and exec may deadlock in a parent that has threads. The parent's starting *thread* must live on: start
children from the main thread only. Where there is no prctl the command just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(argv: list[str]) -> list[str]:
    """The command line that runs `argv` tied to this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def _main() -> None:
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the request was made
            sys.exit("the launcher has ended")
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    _main()

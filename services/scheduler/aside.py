"""Work on grammars that are slow to follow, in a thread beside the step loop.

The libraries release the interpreter's lock while they work, so that only the requests with such grammars wait for it:
their rows sit out until it is done, the steps of the others go on. One thread for all of them, so that they take one
core at most.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from shared.log import Log

log = Log(logging.getLogger(__name__), {})
Work = Callable[[], None]


class Aside:
    """Lives as long as the scheduler; all but the work itself belongs to its event loop."""

    def __init__(self) -> None:
        self.wake: Callable[[], object] = lambda: None
        """Called from the thread when something is done."""
        self._done: deque[Work] = deque()
        self._thread = ThreadPoolExecutor(1, "grammars")

    def start(self, work: Work, then: Work) -> None:
        """Do `work` in the thread, behind what was started before, and `then` in `finish`."""
        self._thread.submit(self._run, work, then)

    def finish(self) -> None:
        """Go on with what is done."""
        while self._done:
            self._done.popleft()()

    def close(self) -> None:
        """Drop what has not begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: Work, then: Work) -> None:
        try:
            work()
        except Exception as fault:
            log.error("a grammar cannot be followed", fault=fault)
        finally:
            self._done.append(then)
            self.wake()

"""Where a step waits for the masks of its rows: filled by the event loop, emptied by the device thread.

The forward of a step is queued on the device before the step before it is known; what its rows may sample follows
from that one, so the masks come later than the plan. Knows nothing of devices.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict

from shared.messages.step import StepMasks

MOST_WAITING = 64
"""Messages kept for plans that were not asked for; more belong to sessions that are over."""


class MaskInbox:
    """Lives as long as the worker."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._waiting: defaultdict[tuple[str, int], list[StepMasks]] = defaultdict(list)
        self._session = ""

    def put(self, masks: StepMasks) -> None:
        """A message came."""
        with self._changed:
            self._waiting[masks.session, masks.seq].append(masks)
            while len(self._waiting) > MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]
            self._changed.notify_all()

    def begin(self, session: str) -> None:
        """Plans of another session come from now on; nobody waits for the one before any longer."""
        with self._changed:
            self._session = session
            self._changed.notify_all()

    def take(self, session: str, seq: int, rows: int) -> list[StepMasks]:
        """All masks of a plan with so many masked rows, waiting for them.

        Raises:
            TimeoutError: they did not come, or the session is over.
        """
        deadline = time.monotonic() + self._timeout_s
        key = (session, seq)
        with self._changed:
            while sum(len(masks.rows) for masks in self._waiting.get(key, ())) < rows:
                left = deadline - time.monotonic()
                if left <= 0 or session != self._session:
                    self._waiting.pop(key, None)
                    raise TimeoutError(f"the masks of step {seq} did not come")
                self._changed.wait(left)
            return self._waiting.pop(key)

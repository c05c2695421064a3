"""Which schedulers can still be counted on.

`shared.peers` tells of losses once, and only of instances it has heard. Two gaps remain: a scheduler that answered
and died before its answer was read, and one that died before its first heartbeat came. Both would leave a stream
waiting for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from shared.actor import LIVENESS_TIMEOUT_S

MAX_REMEMBERED = 1024


class SchedulerRoll:
    """Instances known to be gone, and those in use that never showed. Mutated by the event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._gone: dict[str, None] = {}
        self._missing_since: dict[str, float] = {}
        self._clock = clock

    def lost(self, scheduler_id: str) -> None:
        self._gone[scheduler_id] = None
        if len(self._gone) > MAX_REMEMBERED:
            del self._gone[next(iter(self._gone))]

    def is_gone(self, scheduler_id: str) -> bool:
        return scheduler_id in self._gone

    def overdue(self, in_use: set[str], alive: Iterable[str]) -> list[str]:
        """Schedulers in use that nobody has heard of for the liveness timeout; call it every second or so."""
        alive, now = set(alive), self._clock()
        for scheduler_id in alive & self._gone.keys():
            del self._gone[scheduler_id]  # it was only silent for a while
        self._missing_since = {s: self._missing_since.get(s, now) for s in in_use - alive}
        return [s for s, since in self._missing_since.items() if now - since >= LIVENESS_TIMEOUT_S]

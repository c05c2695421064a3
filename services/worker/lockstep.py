"""Keeps the ranks of one engine on the same plan although each hears the bus on its own.

Before a rank computes a plan it meets the others. When all hold the same plan they go on together. A rank that missed
a plan reports the gap and does not come; the others wait in `meet`, harmlessly, until the scheduler has begun a new
session: the rank then comes with that session's plan 0, the others learn that theirs is stale and drop it.

What cannot be mended ends in `GroupBroken` (two different new sessions) or in torch's own error (a rank died, or did
not come within the group's timeout, or failed in the middle of a plan). The process must then exit: only a restart of
all ranks by the supervisor makes them a group again. See `service.py`.
"""

from __future__ import annotations

import zlib

from services.worker.tensor_parallel import Communicator


class GroupBroken(RuntimeError):
    """The ranks hold plans that no order reconciles."""


class Lockstep:
    """One per engine."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def meet(self, session: str, seq: int) -> bool:
        """Wait for the other ranks; False when this rank's plan is stale and must be dropped.

        Raises:
            GroupBroken: the ranks can only be restarted.
            RuntimeError: from torch, a rank is gone.
        """
        if self._comm.size == 1:
            return True
        mine = [zlib.crc32(session.encode()), seq]
        while True:
            plans = self._comm.all_integers(mine)
            if all(plan == mine for plan in plans):
                return True
            others = [plan for plan in plans if plan != mine]
            if seq > 0 and any(other[1] == 0 for other in others):
                return False
            if seq > 0 or any(other[1] == 0 for other in others):
                raise GroupBroken(f"ranks hold different plans {plans} (session, seq)")

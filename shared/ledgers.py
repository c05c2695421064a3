"""When a sender tells a receiver everything that it has for it, so that a lost message is noticed.

The bus delivers at most once, and a gap in the numbers of a stream shows only when its next message arrives: after the
last one there is none. So the scheduler tells each tokenizer, and a tokenizer each gateway, every few seconds what is
still running and how far it is: a *ledger*. It travels on the stream's own subject, behind everything that was sent
before it, and rounds are numbered; what the receiver should have by then and has not is lost, not late.

Used by the scheduler and the tokenizer; knows nothing of messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LEDGER_S = 3.0
"""Least time between two rounds."""
ROUNDS_AFTER_LAST = 10
"""Rounds after a receiver's last stream has ended: the lost message may be that end. All of them together take longer
than the liveness timeout, so who misses them all has taken the sender for dead and ended its streams."""


class LedgerRounds:
    """Rounds of one sender: their numbers, and who gets them. Nobody to tell, no round."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.number = 0
        """Of the latest round. A stream that began after it is in every later one until its end is sent."""
        self._clock = clock
        self._sent_s = clock()
        self._left: dict[str, int] = {}  # rounds by receiver

    def owe(self, receiver: str) -> None:
        """A stream to `receiver` begins."""
        self._left[receiver] = ROUNDS_AFTER_LAST

    def due(self) -> list[str]:
        """Begin a round if it is time: its receivers, those without a stream included. Call it every second or so.

        The caller calls `owe` again for each receiver that has streams.
        """
        now = self._clock()
        if not self._left or now - self._sent_s < LEDGER_S:
            return []
        self._sent_s = now
        self.number += 1
        receivers = list(self._left)
        self._left = {receiver: left - 1 for receiver, left in self._left.items() if left > 1}
        return receivers

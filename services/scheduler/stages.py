"""Where a scheduler step's time goes: seconds by stage, and the mean per step.

Stages: order, admit, plan, masks (of rows that grammars constrain), publish (encode and send), apply, and wait: for the
answer to a plan, counted from its departure or, where that was later, from the answer before it. `admit` includes
`order`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("order", "admit", "plan", "masks", "publish", "apply", "wait")


class Stages:
    """Lives as long as the scheduler."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(NAMES, 0.0)
        self.steps = 0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def step_sent(self) -> None:
        self.steps += 1

    def mean_ms(self) -> dict[str, float]:
        """Milliseconds per step by stage."""
        return {name: 1000.0 * s / max(self.steps, 1) for name, s in self.seconds.items()}

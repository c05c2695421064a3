"""Work beside the step loop without a thread: done when the loop looks, or not yet."""

from __future__ import annotations

from collections import deque

import numpy as np

from services.scheduler.aside import Aside, Work


class LateAside(Aside):
    """What is started is done some looks later, in order."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._rng = np.random.default_rng(seed)
        self.tasks: deque[tuple[Work, Work]] = deque()
        self.held = False
        """Nothing is done until this is False again."""

    def start(self, work: Work, then: Work) -> None:
        self.tasks.append((work, then))

    def finish(self) -> None:
        for _ in range(0 if self.held else int(self._rng.integers(3))):
            if self.tasks:
                work, then = self.tasks.popleft()
                work()
                then()

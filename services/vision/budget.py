"""Bounds on what many coroutines use parts of: those that one waits for, and those that one must not touch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from shared.errors import Overloaded

Grow = Callable[[int], None]
"""Says that so many bytes more are in memory; Overloaded when that is too much."""


class Ceiling:
    """Bytes in memory whose number is known only when they are there: too many of them end whoever brings more."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.used_bytes = 0

    @contextmanager
    def hold(self) -> Iterator[Grow]:
        """Call what it gives as bytes arrive; all of them count until the context ends."""
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            if self.used_bytes + size > self._most_bytes:
                raise Overloaded(f"{self.used_bytes:,} bytes of images and videos are in work already: try again")
            self.used_bytes += size
            held += size

        try:
            yield grow
        finally:
            self.used_bytes -= held


class Budget:
    """First come, first served. What is larger than the whole budget gets it all, alone."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        return self._total - self._free

    @asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        """Wait until `amount` is free and hold it meanwhile."""
        amount = min(amount, self._total)
        await self._take(amount)
        try:
            yield
        finally:
            self._free += amount
            self._serve()

    async def _take(self, amount: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free += amount  # granted in the moment of the cancellation
            self._serve()
            raise

    def _serve(self) -> None:
        while self._waiting:
            amount, turn = self._waiting[0]
            if not turn.done():
                if amount > self._free:
                    return
                self._free -= amount
                turn.set_result(None)
            self._waiting.popleft()

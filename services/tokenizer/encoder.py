"""Encoding and template rendering off the event loop.

Short work runs at once; longer work goes to a small thread pool with a bounded queue, because the tokenizers library
releases the interpreter lock while it encodes. Used by the service for prompts and for /tokenize.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.errors import Overloaded

T = TypeVar("T")

INLINE_UNITS = 2000
"""Characters (or ids) up to which work is done on the loop itself, about a millisecond."""


class Encoder:
    """A bounded pool. Lives as long as the process; `close` ends its threads."""

    def __init__(self, threads: int, max_pending: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._max_pending = max_pending
        self._pending = 0

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """Run `work`, which handles `size` characters or ids, without blocking the loop for long.

        Raises:
            Overloaded: too much is waiting already.
        """
        if size <= INLINE_UNITS:
            return work()
        if self._pending >= self._max_pending:
            raise Overloaded(f"{self._pending} long prompts are waiting to be encoded: try again later")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

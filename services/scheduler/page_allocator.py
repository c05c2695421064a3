"""Free pages of one engine's KV pool, and pages as runs.

Knows nothing of tokens, rows or the cache. Page ids start at 1; page 0 belongs to the worker.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]


class PageAllocator:
    """A stack of free page ids. Lives as long as the engine's session; the engine alone mutates it."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        # Descending, so that pops from the end give ascending ids: few, long runs on the wire.
        self._stack = np.arange(num_pages, 0, -1, dtype=np.int32)
        self._free = num_pages
        self._is_free = np.ones(num_pages + 1, np.bool_)  # by page id; finds a page that is freed twice

    @property
    def free_pages(self) -> int:
        return self._free

    def alloc(self, count: int) -> I32:
        """Take `count` pages, [count] int32. The caller has checked `free_pages`."""
        assert 0 <= count <= self._free, f"alloc of {count} pages with {self._free} free"
        self._free -= count
        pages = self._stack[self._free : self._free + count][::-1].copy()
        self._is_free[pages] = False
        return pages

    def free(self, pages: I32) -> None:
        """Give distinct pages back; each must be in use and is free afterwards."""
        count = len(pages)
        assert not self._is_free[pages].any(), "a page was freed twice"
        self._is_free[pages] = True
        self._stack[self._free : self._free + count] = pages[::-1]
        self._free += count


def page_runs(rows: I32, pages: I32) -> tuple[I32, I32, I32]:
    """Compress parallel arrays of row and page into runs of consecutive pages of one row.

    Returns:
        (rows [K], first pages [K], lengths [K]), in the order given.
    """
    if len(rows) == 0:
        return rows, pages, np.empty(0, np.int32)
    breaks = np.flatnonzero((np.diff(rows) != 0) | (np.diff(pages) != 1)) + 1
    starts = np.concatenate(([0], breaks))
    lens = np.diff(np.concatenate((starts, [len(rows)]))).astype(np.int32)
    return rows[starts], pages[starts], lens

"""Pages of one engine: allocator, radix cache and row table kept consistent.

Every page is in exactly one place: free, evictable in the cache, protected in the cache, or private to a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.scheduler.page_allocator import PageAllocator
from services.scheduler.radix_cache import CacheObserver, RadixCache
from services.scheduler.request import Found, Req
from services.scheduler.rows import RowTable

I32 = npt.NDArray[np.int32]


class Pool:
    """Lives as long as an engine's session; the engine alone mutates it."""

    def __init__(
        self, num_pages: int, page_size: int, max_rows: int, context_length: int,
        *, share_prefixes: bool = True, observer: CacheObserver | None = None,
    ) -> None:  # fmt: skip
        self.page_size = page_size
        self.allocator = PageAllocator(num_pages)
        self.cache = RadixCache(page_size, observer)
        self.rows = RowTable(max_rows, context_length, page_size)
        self._share = share_prefixes

    @property
    def available_pages(self) -> int:
        """Pages that can be had now, evicting if need be."""
        return self.allocator.free_pages + self.cache.evictable_pages

    @property
    def private_pages(self) -> int:
        c, a = self.cache, self.allocator
        return a.num_pages - a.free_pages - c.evictable_pages - c.protected_pages

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def alloc(self, count: int) -> I32:
        """Take pages, evicting least recently used prefixes; the caller has checked `available_pages`."""
        short = count - self.allocator.free_pages
        if short > 0:
            self.allocator.free(self.cache.evict(short))
        return self.allocator.alloc(count)

    def lock_prefix(self, req: Req) -> I32:
        """Find and lock the longest cached prefix of a waiting request; returns its pages."""
        limit = req.match_limit if self._share else 0
        match = self.cache.match_prefix(req.ids[:limit], req.cache_salt)
        self.cache.lock(match.node)
        req.node = match.node
        return match.pages

    def unlock(self, req: Req) -> None:
        assert req.node is not None
        self.cache.unlock(req.node)
        req.node = None

    def match_len(self, req: Req) -> int:
        """Tokens of a waiting request that are cached now."""
        if not self._share:
            return 0
        cache, found = self.cache, req.found
        if found is None or found.cache is not cache:
            found = req.found = Found(cache)
        if found.version != cache.version:
            found.node, found.tokens = cache.find(req.ids[: req.match_limit], req.cache_salt, found.node)
            found.version = cache.version
        return found.tokens

    def share_computed(self, req: Req, tokens: int) -> None:
        """Put the first `tokens` of a running row into the cache; the row goes on using its own pages.

        Safe once the plan that computes them was sent: plans execute in order. Pages of a prefix that somebody
        else stored meanwhile stay private copies until the row ends.
        """
        full = tokens // self.page_size
        if not self._share or full == 0 or (req.node is not None and req.node.end >= full * self.page_size):
            return
        row, size = req.row, self.page_size
        rows = self.rows
        node, had = self.cache.insert(
            rows.tokens[row, : full * size], rows.page_table[row, :full], req.cache_salt, behind=req.node
        )
        rows.private[row, had:full] = False
        self.cache.lock(node)
        self.unlock(req)
        req.node = node

    def release(self, req: Req) -> None:
        """Take the row from a request: what it computed goes to the cache, the rest of its pages is free."""
        rows, row = self.rows, req.row
        self.share_computed(req, int(min(rows.disp_len[row], rows.known_len[row])))
        self.allocator.free(rows.private_pages(row))
        self.unlock(req)
        rows.detach(req)
        rows.give_back(row)

    def check(self) -> None:
        """Assert the invariant; for tests and `/server_info`'s promise."""
        used = self.rows
        private = sum(len(used.private_pages(r.row)) for r in used.reqs if r is not None)
        assert private == self.private_pages, f"{private} private pages counted, {self.private_pages} by difference"
        assert np.all(used.in_flight >= 0)

"""The radix cache and the page allocator against a naive model under random operations."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.scheduler.page_allocator import PageAllocator
from services.scheduler.radix_cache import RadixCache, RadixNode

NUM_PAGES = 60


class RadixMachine(RuleBasedStateMachine):
    """The model: a dict from (salt, prefix in whole pages) to the page that holds its last page of tokens."""

    @initialize(page_size=st.sampled_from((1, 2, 4)))
    def begin(self, page_size: int) -> None:
        self.page_size = page_size
        self.cache = RadixCache(page_size)
        self.allocator = PageAllocator(NUM_PAGES)
        self.model: dict[tuple[str, tuple[int, ...]], int] = {}
        self.locks: list[tuple[RadixNode, str, tuple[int, ...]]] = []

    tokens = st.lists(st.integers(0, 2), max_size=24)
    salts = st.sampled_from(("", "tenant"))

    @rule(tokens=tokens, salt=salts)
    def insert(self, tokens: list[int], salt: str) -> None:
        tokens = tokens[: len(tokens) - len(tokens) % self.page_size]
        need = len(tokens) // self.page_size
        if need > self.allocator.free_pages:
            return
        pages = self.allocator.alloc(need)
        _, had = self.cache.insert(np.array(tokens, np.int32), pages, salt)
        assert had == self._model_match(tokens, salt) // self.page_size
        self.allocator.free(pages[:had])
        for i in range(had, need):
            self.model[salt, tuple(tokens[: (i + 1) * self.page_size])] = int(pages[i])

    @rule(tokens=tokens, salt=salts)
    def match(self, tokens: list[int], salt: str) -> None:
        array = np.array(tokens, np.int32)
        want = self._model_match(tokens, salt)
        assert self.cache.find(array, salt)[1] == want
        assert self.cache.match_prefix(array, salt).pages.tolist() == self._model_pages(tokens[:want], salt)

    @rule(tokens=tokens, salt=salts)
    def lock(self, tokens: list[int], salt: str) -> None:
        match = self.cache.match_prefix(np.array(tokens, np.int32), salt)
        self.cache.lock(match.node)
        self.locks.append((match.node, salt, tuple(tokens[: len(match.pages) * self.page_size])))

    @rule(which=st.integers(0, 100))
    def unlock(self, which: int) -> None:
        if self.locks:
            self.cache.unlock(self.locks.pop(which % len(self.locks))[0])

    @rule(count=st.integers(0, 30))
    def evict(self, count: int) -> None:
        could = self.cache.evictable_pages
        pages = self.cache.evict(count)
        assert len(pages) == min(count, could)
        self._forget(pages.tolist())

    @rule()
    def flush(self) -> None:
        self._forget(self.cache.clear_unlocked().tolist())
        assert self.cache.evictable_pages == 0

    def _forget(self, pages: list[int]) -> None:
        protected = {self.model[salt, path[: i + self.page_size]]
                     for _, salt, path in self.locks for i in range(0, len(path), self.page_size)}  # fmt: skip
        assert not protected & set(pages), "a locked page was evicted"
        self.allocator.free(np.array(pages, np.int32))
        self.model = {k: v for k, v in self.model.items() if v not in set(pages)}
        for salt, path in self.model:
            assert len(path) == self.page_size or (salt, path[: -self.page_size]) in self.model, "a hole in a path"

    @invariant()
    def pages_are_conserved(self) -> None:
        if not hasattr(self, "cache"):
            return
        cached = self.cache.evictable_pages + self.cache.protected_pages
        assert cached == len(self.model)
        assert self.allocator.free_pages + cached == NUM_PAGES
        locked = {(salt, path[: i + self.page_size])
                  for _, salt, path in self.locks for i in range(0, len(path), self.page_size)}  # fmt: skip
        assert self.cache.protected_pages == len(locked)

    def _model_match(self, tokens: list[int], salt: str) -> int:
        n = 0
        while n + self.page_size <= len(tokens) and (salt, tuple(tokens[: n + self.page_size])) in self.model:
            n += self.page_size
        return n

    def _model_pages(self, tokens: list[int], salt: str) -> list[int]:
        size = self.page_size
        return [self.model[salt, tuple(tokens[: i + size])] for i in range(0, len(tokens), size)]


TestRadixCache = RadixMachine.TestCase
TestRadixCache.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)

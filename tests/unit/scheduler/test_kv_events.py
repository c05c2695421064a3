from __future__ import annotations

import random

import numpy as np
import pytest

from services.scheduler import kv_events
from services.scheduler.config import SchedulerConfig
from services.scheduler.kv_events import KvEventLog
from services.scheduler.radix_cache import RadixCache, RadixNode
from shared import messages as m
from tests.fakes.engine import engine_info
from tests.fakes.scheduler_driver import Driver


class Listener:
    """A router outside: knows the cache from its events alone."""

    def __init__(self) -> None:
        self.blocks: dict[int, m.KvBlock] = {}
        self.next_seq = 0

    def hear(self, log: KvEventLog) -> None:
        while (event := log.take()) is not None:
            assert event.seq == self.next_seq
            self.next_seq += 1
            if event.cleared:
                self.blocks.clear()
            for block in event.stored:
                assert block.hash not in self.blocks
                self.blocks[block.hash] = block
            for name in event.removed:
                del self.blocks[name]

    def prefixes(self) -> list[tuple[int, ...]]:
        return sorted(self._prefix(block) for block in self.blocks.values())

    def _prefix(self, block: m.KvBlock) -> tuple[int, ...]:
        before = () if block.parent is None else self._prefix(self.blocks[block.parent])
        return (*before, *block.token_ids)


def stored_prefixes(cache: RadixCache) -> list[tuple[int, ...]]:
    """Every page's prefix, once per salt."""
    out: list[tuple[int, ...]] = []

    def walk(node: RadixNode, before: tuple[int, ...]) -> None:
        path = (*before, *node.tokens.tolist())
        size = cache.page_size
        out.extend(path[:end] for end in range(len(before) + size, len(path) + 1, size))
        for child in node.children.values():
            walk(child, path)

    for root in cache._roots.values():
        walk(root, ())
    return sorted(out)


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("pumps", [1, 7])
def test_a_listener_knows_exactly_what_is_cached(page_size: int, pumps: int) -> None:
    """Through shared prefixes, eviction, retraction, aborts, salts and flushes, however rarely events are sent."""
    rng = random.Random(page_size)
    driver = Driver(
        engine_info(num_pages=120 // page_size, page_size=page_size, max_rows=6, context_length=100),
        SchedulerConfig(enable_kv_events=True, chunked_prefill_size=16, schedule_conservativeness=0.02),
    )
    log, cache = driver.session.kv_log, driver.session.pool.cache
    assert log is not None
    listener = Listener()
    for step in range(400):
        if rng.random() < 0.3:
            prompt = [5] * rng.randint(0, 30) + [rng.randint(3, 5) for _ in range(rng.randint(1, 8))]
            driver.submit(prompt, rng.randint(0, 30), salt=rng.choice(("", "", "tenant")))
        if rng.random() < 0.05:
            driver.abort(rng.randint(1, max(driver.outputs, default=1)))
        if rng.random() < 0.03:
            driver.scheduler.flush()
        driver.step()
        if step % pumps == 0:
            listener.hear(log)
            assert listener.prefixes() == stored_prefixes(cache)
    assert driver.scheduler.totals.retractions > 0
    driver.run()
    driver.scheduler.flush()
    listener.hear(log)
    assert listener.blocks == {}


def test_a_page_that_leaves_and_comes_back_between_two_events_is_still_there() -> None:
    log = KvEventLog("e", 1)
    cache, listener = RadixCache(1, log), Listener()
    cache.insert(np.array([1, 2], np.int32), np.array([1, 2], np.int32))
    listener.hear(log)
    cache.evict(2)
    cache.insert(np.array([1, 2, 3], np.int32), np.array([4, 5, 6], np.int32))
    listener.hear(log)
    assert listener.prefixes() == [(1,), (1, 2), (1, 2, 3)]


def test_a_page_that_comes_and_leaves_between_two_events_is_not_mentioned() -> None:
    log = KvEventLog("e", 1)
    cache = RadixCache(1, log)
    log.take()
    cache.insert(np.array([1, 2], np.int32), np.array([1, 2], np.int32))
    cache.evict(2)
    assert log.take() is None


def test_equal_prefixes_have_equal_names_on_every_engine_and_other_salts_others() -> None:
    def names(cut: int, salt: str) -> list[int]:
        log = KvEventLog(f"engine {cut} {salt}", 2)
        cache = RadixCache(2, log)
        tokens, pages = np.arange(10, 22, dtype=np.int32), np.arange(1, 7, dtype=np.int32)
        cache.insert(tokens[: 2 * cut], pages[:cut], salt)
        cache.insert(tokens, pages, salt)
        event = log.take()
        assert event is not None
        return [block.hash for block in event.stored]

    assert names(2, "") == names(5, "") == names(0, "")
    assert not set(names(2, "")) & set(names(2, "tenant"))
    assert all(0 <= name < 2**63 for name in names(2, ""))


def test_a_new_session_says_that_nothing_is_cached() -> None:
    log = KvEventLog("e", 1)
    event = log.take()
    assert event is not None
    assert (event.cleared, event.seq) == (True, 0)
    assert log.take() is None


def test_a_flush_is_one_word() -> None:
    log = KvEventLog("e", 1)
    cache = RadixCache(1, log)
    cache.insert(np.arange(3, 100, dtype=np.int32), np.arange(1, 98, dtype=np.int32))
    log.take()
    cache.clear_unlocked()
    event = log.take()
    assert event is not None
    assert (event.cleared, event.stored, event.removed) == (True, [], [])


def test_many_changes_are_told_in_several_messages() -> None:
    log = KvEventLog("e", 1)
    cache, listener = RadixCache(1, log), Listener()
    count = 2 * kv_events.MAX_EVENT_TOKENS // 9 + 5
    tokens = np.arange(count, dtype=np.int32)
    cache.insert(tokens, tokens + 1)
    cache.insert(np.array([7], np.int32), np.array([count + 1], np.int32))
    listener.hear(log)
    assert listener.next_seq == 3
    assert len(listener.blocks) == count + 1

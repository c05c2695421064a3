from __future__ import annotations

import numpy as np
import pytest

from services.scheduler.radix_cache import RadixCache, RadixNode


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def store(cache: RadixCache, tokens: list[int], first_page: int, salt: str = "") -> RadixNode:
    """Insert `tokens` with pages first_page, first_page + 1, ..."""
    count = len(tokens) // cache.page_size
    return cache.insert(ids(*tokens), np.arange(first_page, first_page + count, dtype=np.int32), salt)[0]


def cached(cache: RadixCache, tokens: list[int], salt: str = "") -> int:
    return cache.find(ids(*tokens), salt)[1]


def test_the_longest_stored_prefix_is_found_with_its_pages() -> None:
    cache = RadixCache(1)
    store(cache, [1, 2, 3, 4], 11)
    assert cache.match_prefix(ids(1, 2, 3, 9)).pages.tolist() == [11, 12, 13]
    assert cache.match_prefix(ids(9, 1, 2)).pages.tolist() == []


def test_only_whole_pages_match() -> None:
    cache = RadixCache(4)
    store(cache, [1, 2, 3, 4, 5, 6, 7, 8], 1)
    assert cached(cache, [1, 2, 3, 4, 5, 6, 7]) == 4
    assert cached(cache, [1, 2, 3, 4, 5, 6, 7, 9]) == 4
    assert cached(cache, [1, 2, 3, 9]) == 0


def test_pages_of_a_prefix_that_is_there_stay_the_callers() -> None:
    cache = RadixCache(1)
    store(cache, [1, 2, 3], 1)
    node, had = cache.insert(ids(1, 2, 3, 4, 5), np.arange(21, 26, dtype=np.int32))
    assert had == 3
    assert node.end == 5
    assert cache.match_prefix(ids(1, 2, 3, 4, 5)).pages.tolist() == [1, 2, 3, 24, 25]


def test_an_insert_behind_a_known_node_is_the_same_as_one_from_the_root() -> None:
    cache = RadixCache(2)
    node = store(cache, [1, 2, 3, 4], 1)
    cache.lock(node)
    _, had = cache.insert(ids(1, 2, 3, 4, 5, 6), ids(7, 8, 9), behind=node)
    assert had == 2
    assert cache.match_prefix(ids(1, 2, 3, 4, 5, 6)).pages.tolist() == [1, 2, 9]


def test_the_least_recently_used_leaf_is_evicted_first() -> None:
    cache = RadixCache(1)
    for first, tokens in ((1, [1, 1]), (3, [2, 2]), (5, [3, 3])):
        store(cache, tokens, first)
    cache.match_prefix(ids(1, 1))
    assert sorted(cache.evict(2).tolist()) == [3, 4]
    assert sorted(cache.evict(2).tolist()) == [5, 6]
    assert sorted(cache.evict(2).tolist()) == [1, 2]


def test_asking_for_a_length_alone_does_not_count_as_use() -> None:
    cache = RadixCache(1)
    store(cache, [1, 1], 1)
    store(cache, [2, 2], 3)
    assert cached(cache, [1, 1]) == 2
    assert sorted(cache.evict(2).tolist()) == [1, 2]


def test_a_lock_counts_as_use_of_the_whole_path() -> None:
    cache = RadixCache(1)
    store(cache, [1, 1], 1)
    node = store(cache, [1, 1, 5], 1)
    store(cache, [2, 2], 4)
    cache.lock(node)
    cache.unlock(node)
    assert sorted(cache.evict(2).tolist()) == [4, 5]


def test_a_leaf_loses_its_tail_first_and_no_more_than_is_needed() -> None:
    cache = RadixCache(1)
    store(cache, [1, 2, 3, 4, 5], 1)
    assert cache.evict(2).tolist() == [4, 5]
    assert cached(cache, [1, 2, 3, 4, 5]) == 3
    assert cache.evictable_pages == 3


def test_a_parent_can_be_evicted_after_its_last_child() -> None:
    cache = RadixCache(1)
    store(cache, [1, 2], 1)
    store(cache, [1, 2, 3], 1)
    store(cache, [1, 2, 4], 1)
    assert len(cache.evict(100)) == 4
    assert cached(cache, [1, 2]) == 0


def test_a_locked_path_is_not_evicted() -> None:
    cache = RadixCache(1)
    store(cache, [1, 2, 3], 1)
    cache.lock(store(cache, [1, 2, 3, 4], 1))
    store(cache, [1, 2, 9], 21)
    assert cache.evict(100).tolist() == [23]
    assert cache.protected_pages == 4
    assert cached(cache, [1, 2, 3, 4]) == 4


def test_a_split_keeps_the_locks_of_both_halves() -> None:
    cache = RadixCache(1)
    whole = store(cache, [1, 2, 3, 4], 1)
    cache.lock(whole)
    upper = cache.match_prefix(ids(1, 2, 9)).node
    assert (upper.lock_ref, whole.lock_ref) == (1, 1)
    assert len(cache.evict(100)) == 0
    cache.lock(upper)
    cache.unlock(whole)
    assert sorted(cache.evict(100).tolist()) == [3, 4]
    cache.unlock(upper)
    assert sorted(cache.evict(100).tolist()) == [1, 2]


def test_pages_move_between_evictable_and_protected_with_the_locks() -> None:
    cache = RadixCache(2)
    node = store(cache, [1, 2, 3, 4], 1)
    cache.lock(node)
    cache.lock(node)
    cache.unlock(node)
    assert (cache.evictable_pages, cache.protected_pages) == (0, 2)
    cache.unlock(node)
    assert (cache.evictable_pages, cache.protected_pages) == (2, 0)


def test_unlocking_what_is_not_locked_is_our_bug() -> None:
    cache = RadixCache(1)
    node = store(cache, [1], 1)
    with pytest.raises(AssertionError, match="unlock without lock"):
        cache.unlock(node)


def test_salts_never_meet() -> None:
    cache = RadixCache(1)
    store(cache, [1, 2, 3], 1, "a")
    store(cache, [1, 2], 7, "b")
    assert cached(cache, [1, 2, 3]) == 0
    assert cache.match_prefix(ids(1, 2, 3), "a").pages.tolist() == [1, 2, 3]
    assert cache.match_prefix(ids(1, 2, 3), "b").pages.tolist() == [7, 8]


def test_roots_of_salts_do_not_pile_up() -> None:
    cache = RadixCache(1)
    for i in range(100):
        node = store(cache, [1, 2, 3], 1, f"salt {i}")
        cache.lock(node)
        cache.unlock(node)
        cache.evict(3)
        waiting = cache.match_prefix(ids(5), f"other salt {i}").node
        cache.lock(waiting)
        cache.unlock(waiting)
    assert len(cache._roots) == 0


def test_a_flush_drops_all_but_what_is_locked() -> None:
    cache = RadixCache(1)
    node = store(cache, [1, 2, 3], 1)
    store(cache, [1, 5], 1)
    cache.lock(node)
    assert cache.clear_unlocked().tolist() == [2]
    cache.unlock(node)
    assert sorted(cache.clear_unlocked().tolist()) == [1, 2, 3]


def test_the_version_changes_with_the_content_and_only_then() -> None:
    cache = RadixCache(1)
    store(cache, [1, 2, 3], 1)
    before = cache.version
    node = cache.match_prefix(ids(1, 2, 9)).node  # splits
    cache.lock(node)
    cache.unlock(node)
    store(cache, [1, 2, 3], 9)
    assert cache.version == before
    cache.evict(1)
    assert cache.version > before


class TestABookmark:
    """A node found before saves the walk from the root, whatever happened to the tree since."""

    def find_again(self, cache: RadixCache, tokens: list[int], bookmark: RadixNode | None) -> int:
        found = cache.find(ids(*tokens), "", bookmark)[1]
        assert found == cached(cache, tokens)
        return found

    def test_leads_to_what_was_stored_behind_it(self) -> None:
        cache = RadixCache(1)
        store(cache, [1, 2], 1)
        bookmark, _ = cache.find(ids(1, 2, 3, 4))
        store(cache, [1, 2, 3], 1)
        assert self.find_again(cache, [1, 2, 3, 4], bookmark) == 3

    def test_survives_a_split_above_it(self) -> None:
        cache = RadixCache(1)
        store(cache, [1, 2, 3, 4], 1)
        bookmark, _ = cache.find(ids(1, 2, 3, 4, 5))
        store(cache, [1, 2, 7], 1)
        store(cache, [1, 2, 3, 4, 5], 1)
        assert self.find_again(cache, [1, 2, 3, 4, 5], bookmark) == 5

    def test_knows_that_its_tail_is_gone(self) -> None:
        cache = RadixCache(1)
        store(cache, [1, 2, 3, 4], 1)
        bookmark, _ = cache.find(ids(1, 2, 3, 4, 5))
        cache.evict(2)
        assert self.find_again(cache, [1, 2, 3, 4, 5], bookmark) == 2

    def test_is_given_up_when_its_node_has_left_the_tree(self) -> None:
        cache = RadixCache(1)
        store(cache, [1, 2, 3], 1)
        bookmark, _ = cache.find(ids(1, 2, 3))
        cache.evict(3)
        store(cache, [1, 2], 1)
        assert self.find_again(cache, [1, 2, 3], bookmark) == 2

from __future__ import annotations

import numpy as np
import pytest

from services.scheduler.page_allocator import PageAllocator, page_runs


def test_pages_are_numbered_from_one_and_come_in_ascending_runs() -> None:
    allocator = PageAllocator(10)
    assert allocator.alloc(4).tolist() == [1, 2, 3, 4]
    assert allocator.alloc(6).tolist() == [5, 6, 7, 8, 9, 10]
    assert allocator.free_pages == 0


def test_freed_pages_are_used_again_first_and_in_their_order() -> None:
    allocator = PageAllocator(10)
    pages = allocator.alloc(8)
    allocator.free(pages[2:5])
    assert allocator.alloc(3).tolist() == [3, 4, 5]


def test_no_page_is_lost_or_doubled_by_any_order_of_calls() -> None:
    allocator = PageAllocator(20)
    held = [allocator.alloc(n) for n in (3, 7, 5)]
    allocator.free(held.pop(1))
    held += [allocator.alloc(2), allocator.alloc(4)]
    allocator.free(held.pop(0))
    used = np.concatenate(held)
    assert len(set(used.tolist())) == len(used) == 20 - allocator.free_pages
    rest = allocator.alloc(allocator.free_pages)
    assert sorted([*used.tolist(), *rest.tolist()]) == list(range(1, 21))


def test_nothing_can_be_asked_for_or_given_back() -> None:
    allocator = PageAllocator(1)
    allocator.free(allocator.alloc(0))
    assert allocator.free_pages == 1


def test_more_pages_than_are_free_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="alloc of 3 pages with 2 free"):
        PageAllocator(2).alloc(3)


def test_freeing_a_page_twice_is_our_bug() -> None:
    allocator = PageAllocator(10)
    pages = allocator.alloc(5)
    allocator.free(pages[:2])
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free(pages[1:3])


def runs(rows: list[int], pages: list[int]) -> list[tuple[int, int, int]]:
    out = page_runs(np.array(rows, np.int32), np.array(pages, np.int32))
    return list(zip(*(a.tolist() for a in out), strict=True))


def test_consecutive_pages_of_a_row_are_one_run() -> None:
    assert runs([4, 4, 4], [7, 8, 9]) == [(4, 7, 3)]


def test_a_run_ends_where_the_row_changes_or_a_page_is_skipped() -> None:
    assert runs([0, 1, 1, 1, 2], [5, 6, 7, 9, 10]) == [(0, 5, 1), (1, 6, 2), (1, 9, 1), (2, 10, 1)]


def test_descending_pages_keep_their_order() -> None:
    assert runs([3, 3], [9, 8]) == [(3, 9, 1), (3, 8, 1)]


def test_no_pages_are_no_runs() -> None:
    assert runs([], []) == []

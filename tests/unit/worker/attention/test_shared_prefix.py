"""Which rows of a batch attend a prefix together, against pages compared one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.attention.shared_prefix import LEAST_SAVED_TOKENS, LEAST_TOKENS, find_shared

PAGE_SIZES = [1, 16]


def table_of(prefixes: list[list[int]], page_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A page table of rows that walk a tree: equal numbers at equal depth, behind equal ones, are equal pages.

    A number stands for 64 tokens.
    """
    pages, per_step = {}, 64 // page_size
    table = np.zeros((len(prefixes), 80 * per_step), np.int32)
    for row, prefix in enumerate(prefixes):
        for depth in range(len(prefix)):
            path = tuple(prefix[: depth + 1])
            if path not in pages:
                pages[path] = len(pages) * per_step + 1 + np.arange(per_step)
            table[row, depth * per_step : (depth + 1) * per_step] = pages[path]
    lengths = np.array([len(prefix) * 64 + int(rng.integers(0, 64)) for prefix in prefixes], np.int64)
    return table, lengths


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=0, max_size=40), min_size=0, max_size=40),
    st.sampled_from(PAGE_SIZES),
    st.sampled_from([2, 3, 16]),
)
def test_members_of_a_chunk_have_its_pages_in_common(prefixes: list[list[int]], page_size: int, most: int) -> None:
    rng = np.random.default_rng(len(prefixes))
    table, lengths = table_of(prefixes, page_size, rng)
    rows = rng.permutation(len(prefixes)).astype(np.int64)
    found = find_shared(table, rows, lengths[rows], page_size=page_size, most_members=most, multiple=64)
    if found is None:
        return
    assert found.saved_tokens >= LEAST_SAVED_TOKENS
    assert len(set(found.members.tolist())) == len(found.members) == found.sizes.sum()
    at = 0
    for size, length in zip(found.sizes.tolist(), found.lens.tolist(), strict=True):
        members = rows[found.members[at : at + size]]
        at += size
        assert 1 <= size <= most
        assert length >= LEAST_TOKENS
        assert length % 64 == 0
        assert (lengths[members] >= length).all()
        assert (table[members, : length // page_size] == table[members[0], : length // page_size]).all()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_groups_that_part_late_share_all_they_have(page_size: int) -> None:
    """Everybody begins alike; two groups then go on for 30 and 20 blocks more."""
    prefixes = [[0, *[1] * 30, 10 + n] for n in range(6)] + [[0, *[2] * 20, 20 + n] for n in range(5)] + [[0, 3]]
    table, lengths = table_of(prefixes, page_size, np.random.default_rng(0))
    rows = np.arange(len(prefixes))
    found = find_shared(table, rows, lengths, page_size=page_size, most_members=4, multiple=64)
    assert found is not None
    assert sorted(zip(found.sizes.tolist(), found.lens.tolist(), strict=True)) == [
        (2, 21 * 64), (3, 21 * 64), (3, 31 * 64), (3, 31 * 64),
    ]  # fmt: skip


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_what_saves_little_is_left_alone(page_size: int) -> None:
    short = [[0, 1, 10 + n] for n in range(8)]
    table, lengths = table_of(short, page_size, np.random.default_rng(0))
    assert find_shared(table, np.arange(8), lengths, page_size=page_size, most_members=4, multiple=64) is None


def test_a_batch_of_one_and_heads_that_fill_a_tile_share_nothing() -> None:
    table, lengths = table_of([[0] * 70, [0] * 70], 16, np.random.default_rng(0))
    for rows, most in ((np.arange(1), 8), (np.arange(2), 1)):
        assert find_shared(table, rows, lengths[rows], page_size=16, most_members=most, multiple=64) is None

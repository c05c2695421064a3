"""Which decode rows begin with the same pages, and long enough that attending them together pays.

Host arithmetic over the page table, once per change of the batch. A page that two rows hold at the same place has the
same prefix in both: what is in it was computed from that prefix. Used by the triton attention backend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.worker.rows import I64, ragged_arange

I32 = npt.NDArray[np.int32]
LEAST_TOKENS = 128
"""Shorter prefixes are not worth a chunk."""
LEAST_SAVED_TOKENS = 4096
"""Reads of a token's keys and values saved per step, below which the extra launches cost more."""


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Chunks of batch rows, each with a number of tokens that its members share. R rows, C chunks."""

    members: I64
    """[M] batch rows, chunk after chunk; M <= R."""
    sizes: I64
    """[C] members of each chunk, at least 2."""
    lens: I64
    """[C] shared tokens."""

    @property
    def saved_tokens(self) -> int:
        """Tokens that are not read again."""
        return int(((self.sizes - 1) * self.lens).sum())


def find_shared(
    page_table: I32, rows: I64, lengths: I64, *, page_size: int, most_members: int, multiple: int
) -> SharedPrefixes | None:
    """The chunks of a batch that are worth it, or None.

    One level of sharing is found: of several depths at which rows part, the one that saves most.

    Args:
        page_table: [max_rows, max_pages] page ids.
        rows: [R] rows of the batch.
        lengths: [R] tokens in the pool, without this step's.
        page_size: tokens per page.
        most_members: rows of a chunk; larger groups are cut.
        multiple: shared lengths are rounded down to a multiple of it.
    """
    if most_members < 2 or len(rows) < 2:
        return None
    best, best_saved, depth = None, 0, -(-LEAST_TOKENS // page_size)
    while depth * page_size <= int(lengths.max()):
        inside = np.flatnonzero(lengths >= depth * page_size)
        groups = _groups(page_table[rows[inside], depth - 1], inside)
        if groups is None:
            break
        saved = (len(groups[0]) - len(groups[1])) * depth
        if saved > best_saved:
            best, best_saved = groups, saved
        depth *= 2
    if best is None:
        return None
    members, sizes = best
    lens = _common_pages(page_table, rows[members], lengths[members] // page_size, sizes) * page_size
    return _chunks(members, sizes, lens // multiple * multiple, most_members)


def _groups(pages: I32, numbers: I64) -> tuple[I64, I64] | None:
    """`numbers` ordered by their page, of pages that occur more than once, and how often each occurs."""
    order = np.argsort(pages, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(pages[order]) != 0])
    sizes = np.diff(np.r_[first, len(pages)])
    several = sizes > 1
    if not several.any():
        return None
    return numbers[order[np.repeat(several, sizes)]], sizes[several]


def _common_pages(page_table: I32, rows: I64, full_pages: I64, sizes: I64) -> I64:
    """[C] leading pages that all rows of each group have; at least one, found by bisection."""
    first = np.cumsum(sizes) - sizes
    leaders = np.repeat(rows[first], sizes)
    low, high = np.ones_like(sizes), np.minimum.reduceat(full_pages, first)
    while (low < high).any():
        middle = (low + high + 1) // 2
        at = np.repeat(middle, sizes) - 1
        same = np.logical_and.reduceat(page_table[rows, at] == page_table[leaders, at], first)
        low, high = np.where(same, middle, low), np.where(same, high, middle - 1)
    return low


def _chunks(members: I64, sizes: I64, lens: I64, most: int) -> SharedPrefixes | None:
    """Cut groups into chunks of nearly equal size; drop what is too short."""
    kept = lens >= LEAST_TOKENS
    members, sizes, lens = members[np.repeat(kept, sizes)], sizes[kept], lens[kept]
    parts = -(-sizes // most)
    whole = np.repeat(sizes, parts)
    of, part = np.repeat(parts, parts), ragged_arange(parts)
    found = SharedPrefixes(members, whole * (part + 1) // of - whole * part // of, np.repeat(lens, parts))
    return found if found.saved_tokens >= LEAST_SAVED_TOKENS else None

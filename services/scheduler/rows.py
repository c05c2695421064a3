"""State of the rows of one engine, as arrays.

A decode step over hundreds of rows costs the scheduler a handful of numpy calls: nothing here is per-row Python.
Dimension letters: R rows, C context length, P pages of the longest row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.scheduler.request import Req

I32 = npt.NDArray[np.int32]


class RowTable:
    """Lives as long as an engine's session; the engine alone mutates it.

    Large tables are virtual memory until a row is used.
    """

    def __init__(self, max_rows: int, context_length: int, page_size: int) -> None:
        self.max_rows = max_rows
        self.tokens = np.zeros((max_rows, context_length + 1), np.int32)
        """[R, C+1] every known token of the row."""
        self.page_table = np.zeros((max_rows, -(-(context_length + 1) // page_size)), np.int32)
        """[R, P]"""
        self.private = np.zeros(self.page_table.shape, np.bool_)
        """[R, P] the page belongs to the row, not to the radix cache."""
        self.num_pages = np.zeros(max_rows, np.int32)
        self.known_len = np.zeros(max_rows, np.int32)
        """Tokens known: prompt and results received."""
        self.prefill_len = np.zeros(max_rows, np.int32)
        """Tokens to be computed by extend steps before the first sample."""
        self.disp_len = np.zeros(max_rows, np.int32)
        """Positions whose keys and values were dispatched for computation."""
        self.out_sent = np.zeros(max_rows, np.int32)
        """Samples dispatched, retractions included."""
        self.out_known = np.zeros(max_rows, np.int32)
        """Samples received."""
        self.max_new = np.zeros(max_rows, np.int32)
        self.in_flight = np.zeros(max_rows, np.int32)
        """Unanswered plans that touch the row."""
        self.decoding = np.zeros(max_rows, np.bool_)
        """Prompt dispatched, not ended, not being retracted."""
        self.done = np.ones(max_rows, np.bool_)
        """Results for this row are ignored."""
        self.constrained = np.zeros(max_rows, np.bool_)
        """A grammar says what may be sampled."""
        self.slow = np.zeros(max_rows, np.bool_)
        """It is slow to follow: no step is sent ahead of the answer to the one before."""
        self.waiting = np.zeros(max_rows, np.bool_)
        """Of a slow one: it has not caught up with what was sent."""
        self.handle = np.zeros(max_rows, np.uint32)
        self.owner = np.zeros(max_rows, np.int32)
        """Index of the tokenizer."""
        self.cached_report = np.full(max_rows, -1, np.int32)
        """Cached tokens still to be told; -1 = told."""
        self.reqs: list[Req | None] = [None] * max_rows
        self._free = list(range(max_rows - 1, -1, -1))

    @property
    def free_rows(self) -> int:
        return len(self._free)

    @property
    def used_rows(self) -> int:
        return self.max_rows - len(self._free)

    def running(self) -> list[Req]:
        """Requests that hold a row and have not ended."""
        return [r for r in self.reqs if r is not None and not r.done]

    def take(self, req: Req, owner: int) -> int:
        """Give a free row to a request and set its arrays from it."""
        row = self._free.pop()
        n = len(req.ids)
        self.tokens[row, :n] = req.ids
        self.constrained[row] = req.constraint is not None
        self.slow[row] = self.waiting[row] = False
        if req.constraint is not None:
            self.expect(row, n, req.constraint.forced)
        self.num_pages[row] = 0
        self.known_len[row] = self.prefill_len[row] = n
        self.disp_len[row] = 0
        self.out_sent[row] = self.out_known[row] = req.num_generated
        self.max_new[row] = req.max_new_tokens
        self.in_flight[row] = 0
        self.decoding[row] = False
        self.done[row] = False
        self.handle[row] = req.handle
        self.owner[row] = owner
        self.cached_report[row] = req.cached_untold
        self.reqs[row] = req
        req.row = row
        return row

    def expect(self, row: int, at: int, tokens: list[int]) -> None:
        """These tokens will follow from position `at` on; they are not known yet."""
        self.tokens[row, at : at + len(tokens)] = tokens

    def detach(self, req: Req) -> None:
        """The request takes its tokens along and can wait again; the row is still to be given back."""
        row = req.row
        req.ids = self.tokens[row, : int(self.known_len[row])].copy()
        req.num_generated = int(self.out_known[row])
        req.cached_untold = int(self.cached_report[row])
        req.found = None
        req.retracting = False
        req.row = -1

    def give_back(self, row: int) -> None:
        """The row is free."""
        assert self.in_flight[row] == 0
        assert self.reqs[row] is not None
        self.reqs[row] = None
        self.done[row] = True
        self.decoding[row] = False
        self._free.append(row)

    def append_pages(self, row: int, pages: I32, *, private: bool) -> None:
        """Extend a row's page table."""
        at = int(self.num_pages[row])
        self.page_table[row, at : at + len(pages)] = pages
        self.private[row, at : at + len(pages)] = private
        self.num_pages[row] = at + len(pages)

    def private_pages(self, row: int) -> I32:
        """Pages of the row that are not in the radix cache."""
        n = int(self.num_pages[row])
        return self.page_table[row, :n][self.private[row, :n]]

    def leaving(self) -> list[int]:
        """Rows of ended and retracted requests; free when the last plan that touches them is answered."""
        return [r.row for r in self.reqs if r is not None and (r.done or r.retracting)]

    def decode_candidates(self) -> I32:
        """Rows that may take another decode step, [D]."""
        return np.flatnonzero(self.decoding & ~self.waiting & (self.out_sent < self.max_new)).astype(np.int32)

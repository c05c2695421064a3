"""Device state per row: page table, length, last sampled token.

A row belongs to one request at a time. The scheduler says what changes (`RowInit`, page runs, extends); everything
else a row needs to go on decoding is here, so a decode plan need not repeat it. All ranks hold the same rows;
sampling state is kept by rank 0 alone (`sampling/rows.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.worker.upload import upload
from shared.messages.step import RowInit

I64 = npt.NDArray[np.int64]


class Mirrored:
    """An array that the host plans with and the device computes with: one memory on CPU, two elsewhere."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike, device: torch.device) -> None:
        self.host: npt.NDArray[Any] = np.zeros(shape, dtype=dtype)
        self.device = torch.from_numpy(self.host).to(device)
        self._separate = device.type != "cpu"

    def put(self, index: Any, values: Any) -> None:
        """`host[index] = values` for an index of slices and integer arrays, on both sides."""
        self.host[index] = values
        if self._separate:
            parts = index if isinstance(index, tuple) else (index,)
            where = tuple(upload(i, self.device.device) if isinstance(i, np.ndarray) else i for i in parts)
            stored = np.asarray(values, self.host.dtype)
            self.device[where] = upload(stored, self.device.device) if stored.ndim else int(stored)

    def follow(self, index: Any, values: Any) -> None:
        """`host[index] = values` after the device did the same by itself."""
        if self._separate:
            self.host[index] = values


class Rows:
    """Mutated by the engine while it executes a plan; lives as long as the engine, emptied by a new session."""

    def __init__(self, max_rows: int, max_pages_per_row: int, page_size: int, device: torch.device) -> None:
        self.max_rows, self.max_pages_per_row, self.page_size = max_rows, max_pages_per_row, page_size
        self.page_table = Mirrored((max_rows, max_pages_per_row), np.int32, device)  # page 0 beyond the row's pages
        self.seq_lens = Mirrored((max_rows,), np.int64, device)  # tokens whose keys and values are in the pool
        self.num_pages = np.zeros(max_rows, np.int64)
        self.position_delta = Mirrored((max_rows,), np.int64, device)  # rotary position minus index
        self.last_token: Tensor = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.has_token = np.zeros(max_rows, np.bool_)

    @property
    def lengths(self) -> I64:
        """[max_rows] tokens whose keys and values are in the pool; read only."""
        lengths: I64 = self.seq_lens.host
        return lengths

    def reset(self) -> None:
        """Forget every row."""
        self.page_table.put(slice(None), 0)
        self.seq_lens.put(slice(None), 0)
        self.position_delta.put(slice(None), 0)
        self.num_pages[:] = 0
        self.has_token[:] = False

    def init(self, inits: list[RowInit]) -> None:
        """Give rows to requests: empty page tables."""
        rows = np.array([init.row for init in inits], np.int64)
        self.page_table.put(rows, 0)
        self.seq_lens.put(rows, 0)
        deltas = np.array([init.position_delta for init in inits], np.int64)
        if (deltas != self.position_delta.host[rows]).any():  # most never have one
            self.position_delta.put(rows, deltas)
        self.num_pages[rows] = 0
        self.has_token[rows] = False

    def append_pages(self, rows: I64, starts: I64, lens: I64) -> None:
        """Append runs of pages: run k adds starts[k] .. starts[k]+lens[k]-1 to rows[k], in the order given."""
        before = exclusive_sum_within(rows, lens)
        within = ragged_arange(lens)
        columns = np.repeat(self.num_pages[rows] + before, lens) + within
        self.page_table.put((np.repeat(rows, lens), columns), np.repeat(starts, lens) + within)
        np.add.at(self.num_pages, rows, lens)

    def slots(self, rows: I64, positions: I64) -> I64:
        """Slot of each (row, position)."""
        pages = self.page_table.host[rows, positions // self.page_size].astype(np.int64)
        return pages * self.page_size + positions % self.page_size


def ragged_arange(lens: I64) -> I64:
    """0..lens[0]-1, 0..lens[1]-1, ... as one array."""
    ends = np.cumsum(lens)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lens, lens)


def exclusive_sum_within(groups: I64, values: I64) -> I64:
    """For each item the sum of `values` of earlier items of the same group."""
    order = np.argsort(groups, kind="stable")
    sorted_values, sorted_groups = values[order], groups[order]
    running = np.cumsum(sorted_values) - sorted_values
    first = np.r_[True, sorted_groups[1:] != sorted_groups[:-1]]
    base = running[first][np.cumsum(first) - 1]
    out = np.empty_like(values)
    out[order] = running - base
    return out

"""Pure decode steps as a fixed program over the device's row state: nothing is planned on the host.

The program of a batch size is the same launches every time, so on a GPU it is captured once as a CUDA graph and
replayed: a step then costs the host one launch instead of hundreds. Batches are padded to the next captured size.
Used by the engine for steps without extends; needs an attention backend that plans on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from services.worker.attention.backend import AttentionBackend
from services.worker.graphs import Graphs
from services.worker.kernels.decode_inputs import decode_inputs, decode_inputs_buffer
from services.worker.models.llama import Attend
from services.worker.models.registry import Model
from services.worker.rows import I64, Rows
from services.worker.upload import upload_all


class DeviceAttention(AttentionBackend, Protocol):
    """An attention backend that plans decode steps on the device."""

    def attend_decode(self, rows: Tensor, seq_lens: Tensor, slots: Tensor) -> Attend:
        """One token each of `rows` [R] int32, which see `seq_lens` [R] int32 tokens; 0 = padding.

        The new tokens' keys and values go to `slots` [R] int64; -1 = nowhere.
        """


class DecodeProgram:
    """Keeps the inputs' and outputs' memory and the graphs; lives as long as the engine, used by its device thread."""

    def __init__(self, model: Model, attention: DeviceAttention, rows: Rows, rows_together: int) -> None:
        """
        Args:
            rows_together: that the attention of the engine's slowest rank works on at the same time.
        """
        self._model, self._attention, self._rows, self._together = model, attention, rows, rows_together
        device = rows.last_token.device
        self._inputs = decode_inputs_buffer(rows.max_rows, device)
        self._batch = torch.full((rows.max_rows,), -1, dtype=torch.int32, device=device)
        self._index = torch.zeros(0, dtype=torch.int64, device=device)
        self._place: Tensor | None = None
        self._current: I64 | None = None
        self._sizes = batch_sizes(rows.max_rows)
        self._graphs = Graphs(self._forward)

    def capture(self) -> Iterator[tuple[int, int]]:
        """Capture a graph per size; yields (how many are done, of how many)."""
        self._set_rows(np.zeros(0, np.int64))  # padding only: no row is changed
        return self._graphs.capture(self._sizes)

    def run(self, rows: I64) -> tuple[Tensor, Tensor]:
        """One step of `rows` [D], D > 0. The device counts their new tokens; the host's lengths follow.

        Returns:
            Hidden states [at least D, hidden], valid until the next run, and the rows' numbers [D] int64 on the device.
        """
        if self._current is None or not np.array_equal(rows, self._current):
            self._set_rows(rows)
        size = next(size for size in self._sizes if size >= len(rows))
        hidden = self._graphs.run(size)
        self._rows.seq_lens.follow(rows, self._rows.lengths[rows] + 1)
        return hidden if self._place is None else hidden.index_select(0, self._place[:size]), self._index

    def _set_rows(self, rows: I64) -> None:
        self._current = rows.copy()
        order = prefix_order(self._rows.page_table.host[rows, 0], self._together)
        batch, place = np.full(self._rows.max_rows, -1, np.int64), np.arange(self._rows.max_rows)
        batch[: len(rows)] = rows[order]
        place[order] = np.arange(len(rows))
        self._index, on_device, place_on_device = upload_all([rows, batch, place], self._batch.device)
        self._place = None if (np.diff(order) == 1).all() else place_on_device
        self._batch.copy_(on_device)

    def _forward(self, size: int) -> Tensor:
        """[size, hidden]"""
        rows, inputs, batch = self._rows, self._inputs.first(size), self._batch[:size]
        decode_inputs(batch, rows.seq_lens.device, rows.last_token, rows.page_table.device, inputs, rows.page_size)
        attend = self._attention.attend_decode(batch, inputs.seq_lens, inputs.slots)
        return self._model.forward(inputs.ids, inputs.positions, attend)


def prefix_order(first_pages: I64, together: int) -> I64:
    """The order in which rows that share a prefix are attended at the same time, so that its pages are read from the
    device's cache and not once per row from its memory. [D] indices; 0, 1, ... where nothing is shared.

    Args:
        first_pages: [D] page that each row begins with.
        together: rows that are worked on at the same time. Each of so many workers takes neighbours in the order given,
            one after the other.
    """
    count = len(first_pages)
    if len(np.unique(first_pages)) == count or count <= together:
        return np.arange(count)
    each = -(-count // together)
    lanes = -(-count // each)
    grouped = np.argsort(first_pages, kind="stable")
    turns = np.arange(each * lanes).reshape(each, lanes).T.ravel()
    return grouped[turns[turns < count]]


def batch_sizes(most: int) -> list[int]:
    """Sizes worth a graph of their own: padding costs at most a third of a small batch and a fifth of a large one."""
    sizes = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, *range(80, 128, 16), *range(128, 256, 32), *range(256, most, 64)]
    return [size for size in sizes if size < most] + [most]

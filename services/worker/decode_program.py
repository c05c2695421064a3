"""Pure decode steps as a fixed program over the device's row state.

The program of a batch size is the same launches every time, so on a GPU it is captured once as a CUDA graph and
replayed: a step then costs the host one launch instead of hundreds. Batches are padded to the next captured size.
Batches whose rows share long prefixes have a program of their own, which attends these once.
Used by the engine for steps without extends; needs an attention backend whose part of the program reads its plan on
the device. Most make the plan there too; a `HostPlanner` is told the rows' lengths before each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from services.worker.attention.backend import AttentionBackend
from services.worker.attention.device_plans import SharedPlan
from services.worker.attention.shared_prefix import SharedPrefixes
from services.worker.graphs import Graphs
from services.worker.kernels.decode_inputs import decode_inputs, decode_inputs_buffer
from services.worker.kernels.shared_attention import Sharing
from services.worker.models.llama import Attend
from services.worker.models.registry import Model
from services.worker.rows import I64, Rows
from services.worker.upload import upload_all

SHARED_SIZES = [8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 640, 768, 896]
"""Batches with shared prefixes: fewer sizes, since padding costs little beside what sharing saves."""


class DeviceAttention(AttentionBackend, Protocol):
    """An attention backend whose decode steps are launches that do not depend on the rows' lengths."""

    def find_shared(self, rows: I64) -> SharedPrefixes | None:
        """The prefixes that a batch of `rows` [R] had better attend together; host work."""

    def attend_decode(self, rows: Tensor, seq_lens: Tensor, slots: Tensor, sharing: Sharing | None) -> Attend:
        """One token each of `rows` [R] int32, which see `seq_lens` [R] int32 tokens; 0 = padding.

        The new tokens' keys and values go to `slots` [R] int64; -1 = nowhere.
        """


class HostPlanner(Protocol):
    """The host's part of an attention backend's decode steps, but for those with shared prefixes."""

    def fits(self, seq_lens: I64) -> bool:
        """Whether a step of rows that see `seq_lens` [D] tokens can be planned."""

    def plan_decode(self, seq_lens: I64, size: int) -> None:
        """Queue the plan of the next step for the device.

        Args:
            seq_lens: [D] tokens that each row sees, its new one included.
            size: the step's rows, padding included; D or more.
        """


class DecodeProgram:
    """Keeps the inputs' and outputs' memory and the graphs; lives as long as the engine, used by its device thread."""

    def __init__(
        self, model: Model, attention: DeviceAttention, rows: Rows, planner: HostPlanner | None = None
    ) -> None:
        """
        Args:
            planner: of the attention, where its plans are made on the host.
        """
        self._model, self._attention, self._rows, self._planner = model, attention, rows, planner
        device = rows.last_token.device
        self._inputs = decode_inputs_buffer(rows.max_rows, device)
        self._batch = torch.full((rows.max_rows,), -1, dtype=torch.int32, device=device)
        self._index = torch.zeros(0, dtype=torch.int64, device=device)
        self._current: I64 | None = None
        self._plan = SharedPlan(rows.max_rows, device)
        self._shares = False
        self._sizes = batch_sizes(rows.max_rows)
        self._shared_sizes = [size for size in SHARED_SIZES if size < rows.max_rows] + [rows.max_rows]
        self._graphs = Graphs(lambda size: self._forward(size, None))
        self._shared_graphs = Graphs(lambda size: self._forward(size, self._plan.first(size)))

    def capture(self) -> Iterator[tuple[int, int]]:
        """Capture a graph per size; yields (how many are done, of how many)."""
        self._set_rows(np.zeros(0, np.int64))  # padding only: no row is changed
        self._plan.clear()
        for size in self._sizes:
            self._plan_on_host(np.zeros(0, np.int64), size)
        of, done = len(self._sizes) + len(self._shared_sizes), 0
        for graphs, sizes in ((self._graphs, self._sizes), (self._shared_graphs, self._shared_sizes)):
            for _ in graphs.capture(sizes):
                done += 1
                yield done, of

    def fits(self, rows: I64) -> bool:
        """Whether a step of `rows` can be run."""
        return self._planner is None or self._planner.fits(self._rows.lengths[rows] + 1)

    def run(self, rows: I64) -> tuple[Tensor, Tensor]:
        """One step of `rows` [D], D > 0. The device counts their new tokens; the host's lengths follow.

        Returns:
            Hidden states [at least D, hidden], valid until the next run, and the rows' numbers [D] int64 on the device.
        """
        if self._current is None or not np.array_equal(rows, self._current):
            self._set_rows(rows)
        sizes, graphs = (self._shared_sizes, self._shared_graphs) if self._shares else (self._sizes, self._graphs)
        size = next(size for size in sizes if size >= len(rows))
        if not self._shares:
            self._plan_on_host(self._rows.lengths[rows] + 1, size)
        hidden = graphs.run(size)
        self._rows.seq_lens.follow(rows, self._rows.lengths[rows] + 1)
        return hidden, self._index

    def forget(self) -> None:
        """A row has a new owner, or another prompt: what is known of the batch's prefixes may be wrong."""
        self._current = None

    def _plan_on_host(self, seq_lens: I64, size: int) -> None:
        if self._planner is not None:
            self._planner.plan_decode(seq_lens, size)

    def _set_rows(self, rows: I64) -> None:
        self._current = rows.copy()
        batch = np.full(self._rows.max_rows, -1, np.int64)
        batch[: len(rows)] = rows
        self._index, on_device = upload_all([rows, batch], self._batch.device)
        self._batch.copy_(on_device)
        found = self._attention.find_shared(rows)
        self._shares = found is not None
        if found is not None:
            self._plan.set(found, rows)

    def _forward(self, size: int, sharing: Sharing | None) -> Tensor:
        """[size, hidden]"""
        rows, inputs, batch = self._rows, self._inputs.first(size), self._batch[:size]
        decode_inputs(
            batch, rows.seq_lens.device, rows.position_delta.device, rows.last_token, rows.page_table.device, inputs,
            rows.page_size,
        )  # fmt: skip
        attend = self._attention.attend_decode(batch, inputs.seq_lens, inputs.slots, sharing)
        return self._model.forward(inputs.ids, inputs.positions, attend)


def batch_sizes(most: int) -> list[int]:
    """Sizes worth a graph of their own: padding costs at most a third of a small batch and a fifth of a large one."""
    sizes = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, *range(80, 128, 16), *range(128, 256, 32), *range(256, most, 64)]
    return [size for size in sizes if size < most] + [most]

"""Small steps with extends (chunks of prompts beside decode rows, forced runs) as programs of fixed size.

Launching a forward kernel by kernel takes the host longer than a small one takes the device. A program has a fixed
number of tokens; which rows they belong to is read on the device (`MixedPlan`), so one CUDA graph serves every mix.
The host arranges the step as always (`batch.py`) and copies it into the program's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from services.worker.attention.device_plans import MixedPlan
from services.worker.batch import Batch, build_batch
from services.worker.graphs import Graphs
from services.worker.models.llama import Attend
from services.worker.models.registry import Model
from services.worker.plan_check import Work
from services.worker.rows import Rows

SIZES = [*range(64, 512, 64), *range(512, 1024, 128), *range(1024, 2049, 256)]
"""Tokens. Above them a step takes the device longer than its launches take the host."""
MAX_EXTENDS = 256


class MixedAttention(Protocol):
    """An attention backend that plans mixed steps on the device."""

    def attend_mixed(self, plan: MixedPlan, slots: Tensor) -> Attend:
        """A step whose rows are read from `plan` on the device, so that they may change between replays of a graph.

        Args:
            slots: [T] int64, where keys and values go; T, and nothing else of the shape, is fixed.
        """


class MixedProgram:
    """Keeps the inputs' and outputs' memory and the graphs; lives as long as the engine, used by its device thread."""

    def __init__(self, model: Model, attention: MixedAttention, rows: Rows, most_tokens: int) -> None:
        """
        Args:
            most_tokens: of any step; larger programs are not made.
        """
        self._model, self._attention, self._rows = model, attention, rows
        device = rows.last_token.device
        self._sizes = [size for size in SIZES if size < most_tokens + SIZES[0]]
        self._ids, self._positions, self._slots = torch.zeros((3, self._sizes[-1]), dtype=torch.int64, device=device)
        self._plan = MixedPlan(min(MAX_EXTENDS, rows.max_rows), rows.max_rows, device)
        self._graphs = Graphs(self._forward)

    def capture(self) -> Iterator[tuple[int, int]]:
        """Capture a graph per size; yields (how many are done, of how many)."""
        self._plan.clear()  # the step before may have had more tokens than the smallest size
        return self._graphs.capture(self._sizes)

    def fits(self, work: Work) -> bool:
        """Whether a step is small enough, and of ids alone."""
        if work.has_media:
            return False
        tokens = len(work.ext_tokens) + len(work.decode_rows)
        return tokens <= self._sizes[-1] and len(work.ext_rows) <= self._plan.max_extends

    def load(self, work: Work) -> Batch:
        """Arrange a step that fits, and copy it into the program's memory."""
        tokens = len(work.ext_tokens) + len(work.decode_rows)
        size = next(size for size in self._sizes if size >= tokens)
        batch = build_batch(work, self._rows, size, min_samples=1)
        for into, values in ((self._ids, batch.ids), (self._positions, batch.positions), (self._slots, batch.slots)):
            into[:size].copy_(values)
        self._plan.set(batch)
        return batch

    def run(self, batch: Batch) -> Tensor:
        """Hidden states [T, hidden] of the step that was loaded, valid until the next run."""
        return self._graphs.run(batch.num_tokens)

    def _forward(self, size: int) -> Tensor:
        attend = self._attention.attend_mixed(self._plan, self._slots[:size])
        return self._model.forward(self._ids[:size], self._positions[:size], attend)

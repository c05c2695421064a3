"""Decode steps of few rows on a CPU as recordings, one per size of the batch.

Steps of a size differ in where their rows are and how long, which is in memory that stays in its place. Batches are
padded to the next size with rows that see one token, of page 0. Used by the engine for steps without extends, where
attention runs in our CPU kernels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from services.worker.attention.numba_backend import NumbaAttention
from services.worker.models.registry import Model
from services.worker.recording import Recording
from services.worker.rows import I64, Rows

SIZES = (1, 2, 4, 8, 12, 16)
"""Rows; four tokens cost our products little more than three. With more, Python's part of a step is small."""


class RecordedDecode:
    """Keeps the recordings; lives as long as the engine, used by its device thread."""

    @torch.inference_mode()
    def __init__(self, model: Model, attention: NumbaAttention, rows: Rows, least_rows: int) -> None:
        """
        Args:
            least_rows: fewer are padded to so many.

        Raises:
            NotRecordable: this model cannot be recorded.
        """
        self._model, self._rows = model, rows
        sizes = [size for size in SIZES if size >= least_rows]
        self._steps = {size: _Step(model, attention, size) for size in sizes}

    @property
    def nbytes(self) -> int:
        """Of the memory that the recordings keep."""
        return sum(step.recording.nbytes for step in self._steps.values())

    def fits(self, rows: I64) -> bool:
        """Whether a step of `rows` can be run."""
        return len(rows) <= SIZES[-1]

    def run(self, rows: I64) -> tuple[Tensor, Tensor]:
        """One step of `rows` [D], D > 0, and one token more in each.

        Returns:
            Hidden states [at least D, hidden], valid until the next run, and the rows' numbers [D] int64.
        """
        step = next(step for size, step in self._steps.items() if size >= len(rows))
        index, lengths = torch.from_numpy(rows), self._rows.lengths[rows]
        step.load(self._rows, rows, lengths, self._rows.last_token.index_select(0, index))
        hidden = step.recording.replay()
        self._rows.seq_lens.put(rows, lengths + 1)
        return hidden, index

    def forget(self) -> None:
        """Nothing is known of a batch from one step to the next."""


class _Step:
    """A size of the batch: its inputs' memory and the recording."""

    def __init__(self, model: Model, attention: NumbaAttention, size: int) -> None:
        self._model, self._size = model, size
        ids = torch.zeros(size, dtype=torch.int64)
        rotation = model.rotation(ids)
        self._attend = attention.fixed_step(size)
        self._residual = model.embed(ids)
        self.recording = Recording(lambda: model.through_layers(self._residual, rotation, self._attend))

    def load(self, to: Rows, rows: I64, lengths: I64, ids: Tensor) -> None:
        """
        Args:
            rows, lengths: [D], and their tokens so far.
            ids: [D] their new tokens.
        """
        count, more = len(rows), self._size - len(rows)
        self._residual[:count] = self._model.embed(ids)
        positions = np.pad(lengths + to.position_delta.host[rows], (0, more))
        self._attend.set(
            self._model.rotation(torch.from_numpy(positions)), np.pad(rows, (0, more), mode="edge"),
            np.pad(lengths + 1, (0, more), constant_values=1), np.pad(to.slots(rows, lengths), (0, more)),
        )  # fmt: skip

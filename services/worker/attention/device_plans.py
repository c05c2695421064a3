"""What a step's attention reads of its batch, in device memory that stays: graphs are replayed over it.

Filled by the host in one copy when the batch changes. Used by the triton attention backend and the programs.
"""

from __future__ import annotations

import numpy as np
import torch

from services.worker.attention.shared_prefix import SharedPrefixes
from services.worker.batch import Batch
from services.worker.kernels.shared_attention import Sharing
from services.worker.rows import I64
from services.worker.upload import upload


class MixedPlan:
    """Which rows a mixed step has. Unused rows have no queries and no tokens."""

    def __init__(self, max_extends: int, max_decodes: int, device: torch.device) -> None:
        sizes = [max_extends, max_extends, max_extends + 1, max_decodes, max_decodes, max_decodes + 1]
        self.max_extends, self.max_decodes = max_extends, max_decodes
        self._all = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        parts = torch.split(self._all, sizes)
        self.ext_rows, self.ext_seen, self.ext_cu_q = parts[:3]
        self.decode_rows, self.decode_seen, self.decode_cu_q = parts[3:]

    def clear(self) -> None:
        """No rows: what a program of any size may read."""
        self._all.zero_()

    def set(self, batch: Batch) -> None:
        """Describe a step with at most as many rows, in one copy."""
        extends, decodes = self.max_extends - len(batch.ext_rows), self.max_decodes - len(batch.decode_rows)
        ends = np.cumsum(batch.ext_lens)
        decode_ends = batch.num_extend_tokens + np.arange(len(batch.decode_rows) + 1)
        parts = [
            np.pad(batch.ext_rows, (0, extends)), np.pad(batch.ext_starts + batch.ext_lens, (0, extends)),
            np.pad(np.concatenate(([0], ends)), (0, extends), mode="edge"),
            np.pad(batch.decode_rows, (0, decodes)), np.pad(batch.decode_lens, (0, decodes)),
            np.pad(decode_ends, (0, decodes), mode="edge"),
        ]  # fmt: skip
        self._all.copy_(upload(np.concatenate(parts).astype(np.int32), self._all.device))


class SharedPlan:
    """Which rows of a decode batch attend a prefix together."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        sizes = [max_rows, max_rows, max_rows, max_rows, max_rows + 1, max_rows, max_rows]
        self._max_rows = max_rows
        self._all = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self._parts = torch.split(self._all, sizes)

    def clear(self) -> None:
        """Nothing is shared."""
        self._all.zero_()

    def set(self, found: SharedPrefixes, rows: I64) -> None:
        """Describe the sharing of a batch, in one copy.

        Args:
            rows: [R] rows of the page table that the batch consists of.
        """
        most, count, chunks = self._max_rows, len(found.members), len(found.sizes)
        starts, chunk_of, place_of = np.zeros(most, np.int64), np.full(most, -1), np.zeros(most, np.int64)
        ends = np.cumsum(found.sizes)
        starts[found.members] = np.repeat(found.lens, found.sizes)
        chunk_of[found.members] = np.repeat(np.arange(chunks), found.sizes)
        place_of[found.members] = np.arange(count)
        leaders = rows[found.members[ends - found.sizes]]
        parts = [
            starts, chunk_of, place_of, np.pad(found.members, (0, most - count)),
            np.pad(np.concatenate(([0], ends)), (0, most - chunks), mode="edge"),
            np.pad(leaders, (0, most - chunks)), np.pad(found.lens, (0, most - chunks)),
        ]  # fmt: skip
        self._all.copy_(upload(np.concatenate(parts).astype(np.int32), self._all.device))

    def first(self, rows: int) -> Sharing:
        """Views for a batch of `rows` rows, padding included."""
        sizes = [rows, rows, rows, rows, rows + 1, rows, rows]
        return Sharing(*(part[:size] for part, size in zip(self._parts, sizes, strict=True)))

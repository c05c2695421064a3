"""The seam between the engine and attention implementations."""

from __future__ import annotations

from typing import Protocol

from services.worker.attention.torch_backend import TorchAttention
from services.worker.batch import Batch
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.rows import Rows


class AttentionBackend(Protocol):
    """Made once per engine, for its pool and rows."""

    name: str

    def prepare(self, batch: Batch) -> Attend:
        """Plan one step: indices and masks that all layers share. The result is called once per layer, in order."""


def make_backend(name: str, pool: KvPool, rows: Rows, windows: list[int | None]) -> AttentionBackend:
    """The backend of `--attention-backend`.

    Args:
        windows: sliding window of each layer; None = sees everything.
    """
    assert name in ("auto", "torch")
    return TorchAttention(pool, rows, windows)

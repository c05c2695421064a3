"""Paged attention from PyTorch operators: runs on any device, the oracle of all other backends.

Decode rows are cut into chunks of similar length; each chunk gathers its pages once and attends with the query heads
of a KV head folded into the query length, so keys and values are never repeated. A row whose pages lie one after the
other is read in place. Extend rows run one by one (`torch_extend.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from services.worker.attention.masks import additive_mask
from services.worker.attention.paged_keys import PagedKeys, find_keys, gather_buffer, load_keys
from services.worker.attention.torch_extend import Extend, attend_extend, plan_extends
from services.worker.batch import Batch
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.models.rope import QkNorm, Rotation, turn_
from services.worker.rows import I64, Rows

CHUNK_BYTES = 6 << 20
"""Gathered keys and values of a chunk stay in the last-level cache."""
CHUNK_SPREAD = 1.25
"""Longest over shortest row of a chunk: the most that padding may cost."""
CHUNK_SLACK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class _Decode:
    """A chunk of decode rows: tokens start..stop of the batch."""

    start: int
    stop: int
    keys: PagedKeys
    masks: dict[int | None, Tensor | None]
    """By window: [rows, 1, 1, slots], 0 or -inf; None = everything is seen"""


class TorchAttention:
    """Stateless between steps."""

    name = "torch"

    def __init__(self, pool: KvPool, rows: Rows, windows: list[int | None]) -> None:
        self._pool, self._rows, self._windows = pool, rows, windows
        self._kinds = sorted(set(windows), key=lambda w: w or 0)
        token_bytes = 2 * pool.num_kv_heads * pool.head_dim * pool.dtype.itemsize
        self._chunk_tokens = max(1, CHUNK_BYTES // token_bytes)

    def prepare(self, batch: Batch) -> Attend:
        extends = list(plan_extends(self._pool, self._rows, batch, self._kinds))
        decodes = list(self._decodes(batch))
        buffer = gather_buffer(self._pool, [*(e.keys for e in extends), *(d.keys for d in decodes)])
        return _Step(self._pool, batch, extends, decodes, self._windows, buffer)

    def _decodes(self, batch: Batch) -> Iterator[_Decode]:
        first = batch.num_extend_tokens
        for start, stop in self._chunks(batch.decode_lens):
            lens = batch.decode_lens[start:stop]
            keys = find_keys(self._pool, self._rows, batch.decode_rows[start:stop], int(lens[-1]))
            masks = {window: self._mask(lens, keys.tokens, window) for window in self._kinds}
            yield _Decode(first + start, first + stop, keys, masks)

    def _chunks(self, lens: I64) -> Iterator[tuple[int, int]]:
        """Cut ascending lengths into ranges; one step of Python per chunk, not per row."""
        start = 0
        while start < len(lens):
            longest = max(lens[start] * CHUNK_SPREAD, lens[start] + CHUNK_SLACK_TOKENS)
            stop = int(np.searchsorted(lens, longest, side="right"))
            stop = min(stop, start + max(1, self._chunk_tokens // int(lens[stop - 1])))
            yield start, stop
            start = stop

    def _mask(self, lens: I64, tokens: int, window: int | None) -> Tensor | None:
        if (lens == tokens).all() and (window is None or tokens <= window):
            return None
        position, end = np.arange(tokens), lens[:, None]
        hidden = position >= end
        if window is not None:
            hidden |= position < end - window
        return additive_mask(hidden, self._pool.dtype, self._pool.device)[:, None, None, :]


class _Step:
    """What `prepare` returns: called once per layer."""

    def __init__(
        self,
        pool: KvPool,
        batch: Batch,
        extends: list[Extend],
        decodes: list[_Decode],
        windows: list[int | None],
        buffer: Tensor | None,
    ) -> None:
        self._pool, self._batch, self._windows, self._buffer = pool, batch, windows, buffer
        self._extends, self._decodes = extends, decodes
        self._out: Tensor | None = None

    def __call__(self, layer: int, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> Tensor:
        q, kv = self._split(qkv, rotation, qk_norm)
        tokens, heads, dim = q.shape
        self._pool.write(layer, self._batch.slots, kv)
        if self._out is None:  # one buffer for all layers: each is consumed before the next; padding stays zero
            self._out = q.new_zeros((tokens, heads, dim))
        window = self._windows[layer]
        for extend in self._extends:
            attend_extend(self._pool, layer, extend, window, q, kv, self._out, self._buffer)
        for chunk in self._decodes:
            self._decode(layer, chunk, window, q, self._out)
        return self._out.view(tokens, heads * dim)

    def _split(self, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> tuple[Tensor, Tensor]:
        """Turned queries [T, H, D], and turned keys with the values [T, 2, G, D]: views of `qkv`."""
        dim, groups = self._pool.head_dim, self._pool.num_kv_heads
        parts = qkv.view(qkv.shape[0], -1, dim)
        heads = parts.shape[1] - 2 * groups
        turn_(parts[:, : heads + groups], heads, rotation, qk_norm)
        return parts[:, :heads], parts[:, heads:].view(-1, 2, groups, dim)

    def _decode(self, layer: int, chunk: _Decode, window: int | None, q: Tensor, out: Tensor) -> None:
        rows, heads, dim, groups = chunk.stop - chunk.start, q.shape[1], q.shape[2], self._pool.num_kv_heads
        kv = load_keys(self._pool, layer, chunk.keys, self._buffer).view(rows, -1, 2, groups, dim)
        shape = (rows, groups, heads // groups, dim)
        result = F.scaled_dot_product_attention(
            q[chunk.start : chunk.stop].view(shape),
            kv[:, :, 0].transpose(1, 2),  # [rows, G, S, D]
            kv[:, :, 1].transpose(1, 2),
            attn_mask=chunk.masks[window],
        )
        out[chunk.start : chunk.stop].view(shape).copy_(result)

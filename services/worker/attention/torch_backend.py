"""Paged attention from PyTorch operators: runs on any device, fast on CPU, the oracle of all other backends.

Decode rows are cut into chunks of similar length; each chunk gathers its pages once and attends with the query heads
of a KV head folded into the query length, so keys and values are never repeated. A row whose pages lie one after the
other is read in place. Extend rows run one by one, in blocks of queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from services.worker.batch import Batch
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.models.rope import QkNorm, Rotation, turn_
from services.worker.rows import Rows
from services.worker.upload import upload

CHUNK_BYTES = 6 << 20
"""Gathered keys and values of a chunk stay in the last-level cache."""
CHUNK_SPREAD = 1.25
"""Longest over shortest row of a chunk: the most that padding may cost."""
CHUNK_SLACK_TOKENS = 64
QUERY_BLOCK = 512
"""Queries of an extend row that share a mask: bounds its memory and skips keys after the block."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """Where the keys and values of one or several rows of equal page count are."""

    pages: Tensor | None
    """[rows * n] to gather; None = in place"""
    first_page: int
    tokens: int
    """Slots per row."""


@dataclass(frozen=True, slots=True)
class _Decode:
    """A chunk of decode rows: tokens start..stop of the batch."""

    start: int
    stop: int
    keys: _Keys
    masks: dict[int | None, Tensor | None]
    """By window: [rows, 1, 1, slots], 0 or -inf; None = everything is seen"""


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries start..stop of the batch, seeing the first `keys` slots of their row."""

    start: int
    stop: int
    keys: int
    masks: dict[int | None, Tensor | None]
    """By window: [queries, keys]; None = causal from the first key on"""


@dataclass(frozen=True, slots=True)
class _Extend:
    """One extend row."""

    start: int
    stop: int
    keys: _Keys | None
    """None: nothing was cached, the keys of this step are all there are"""
    blocks: list[_Block]


class TorchAttention:
    """Stateless between steps."""

    name = "torch"

    def __init__(self, pool: KvPool, rows: Rows, windows: list[int | None]) -> None:
        self._pool, self._rows, self._windows = pool, rows, windows
        self._kinds = sorted(set(windows), key=lambda w: w or 0)
        token_bytes = 2 * pool.num_kv_heads * pool.head_dim * pool.dtype.itemsize
        self._chunk_tokens = max(1, CHUNK_BYTES // token_bytes)

    def prepare(self, batch: Batch) -> Attend:
        extends = list(self._extends(batch))
        decodes = list(self._decodes(batch))
        gathered = [k.pages.shape[0] for k in (*(e.keys for e in extends), *(d.keys for d in decodes))
                    if k is not None and k.pages is not None]  # fmt: skip
        buffer = self._pool.gather_buffer(max(gathered)) if gathered else None
        return _Step(self._pool, batch, extends, decodes, self._windows, buffer)

    def _decodes(self, batch: Batch) -> Iterator[_Decode]:
        first = batch.num_extend_tokens
        for start, stop in self._chunks(batch.decode_lens):
            lens = batch.decode_lens[start:stop]
            keys = self._keys(batch.decode_rows[start:stop], int(lens[-1]))
            masks = {window: self._decode_mask(lens, keys.tokens, window) for window in self._kinds}
            yield _Decode(first + start, first + stop, keys, masks)

    def _chunks(self, lens: np.ndarray) -> Iterator[tuple[int, int]]:
        """Cut ascending lengths into ranges; one step of Python per chunk, not per row."""
        start = 0
        while start < len(lens):
            longest = max(lens[start] * CHUNK_SPREAD, lens[start] + CHUNK_SLACK_TOKENS)
            stop = int(np.searchsorted(lens, longest, side="right"))
            stop = min(stop, start + max(1, self._chunk_tokens // int(lens[stop - 1])))
            yield start, stop
            start = stop

    def _keys(self, rows: np.ndarray, tokens: int) -> _Keys:
        pages = -(-tokens // self._pool.page_size)
        table = self._rows.page_table
        if len(rows) == 1:
            own = table.host[rows[0], :pages]
            if (np.diff(own) == 1).all():
                return _Keys(None, int(own[0]), tokens)
        index = upload(rows, self._pool.device)
        wanted = table.device[:, :pages].index_select(0, index).view(-1)
        return _Keys(wanted, 0, pages * self._pool.page_size)

    def _decode_mask(self, lens: np.ndarray, tokens: int, window: int | None) -> Tensor | None:
        if (lens == tokens).all() and (window is None or tokens <= window):
            return None
        position, end = np.arange(tokens), lens[:, None]
        hidden = position >= end
        if window is not None:
            hidden |= position < end - window
        return self._additive(hidden)[:, None, None, :]

    def _extends(self, batch: Batch) -> Iterator[_Extend]:
        stop = 0
        for row, cached, length in zip(batch.ext_rows, batch.ext_starts.tolist(), batch.ext_lens.tolist(), strict=True):
            start, stop = stop, stop + length
            keys = self._keys(np.array([row]), cached + length) if cached else None
            yield _Extend(start, stop, keys, list(self._blocks(start, cached, length)))

    def _blocks(self, start: int, cached: int, length: int) -> Iterator[_Block]:
        if not cached and all(w is None or length <= w for w in self._kinds):
            yield _Block(start, start + length, length, dict.fromkeys(self._kinds))
            return
        for at in range(0, length, QUERY_BLOCK):
            until = min(at + QUERY_BLOCK, length)
            query, key = np.arange(cached + at, cached + until)[:, None], np.arange(cached + until)
            masks: dict[int | None, Tensor | None] = {}
            for window in self._kinds:
                hidden = key > query
                if window is not None:
                    hidden |= key <= query - window
                masks[window] = self._additive(hidden)
            yield _Block(start + at, start + until, cached + until, masks)

    def _additive(self, hidden: np.ndarray) -> Tensor:
        mask = upload(np.where(hidden, np.float32(-math.inf), np.float32(0.0)), self._pool.device)
        return mask.to(self._pool.dtype)


class _Step:
    """What `prepare` returns: called once per layer."""

    def __init__(
        self,
        pool: KvPool,
        batch: Batch,
        extends: list[_Extend],
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
            self._extend(layer, extend, window, q, kv, self._out)
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

    def _extend(self, layer: int, extend: _Extend, window: int | None, q: Tensor, kv: Tensor, out: Tensor) -> None:
        seen = kv[extend.start : extend.stop] if extend.keys is None else self._load(layer, extend.keys)
        k, v = seen.transpose(0, 2).unsqueeze(0).unbind(2)  # [1, G, S, D]
        for block in extend.blocks:
            mask = block.masks[window]
            result = F.scaled_dot_product_attention(
                q[block.start : block.stop].transpose(0, 1).unsqueeze(0),  # [1, H, queries, D]
                k[:, :, : block.keys],
                v[:, :, : block.keys],
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=True,
            )
            out[block.start : block.stop] = result[0].transpose(0, 1)

    def _decode(self, layer: int, chunk: _Decode, window: int | None, q: Tensor, out: Tensor) -> None:
        rows, heads, dim, groups = chunk.stop - chunk.start, q.shape[1], q.shape[2], self._pool.num_kv_heads
        kv = self._load(layer, chunk.keys).view(rows, -1, 2, groups, dim)
        shape = (rows, groups, heads // groups, dim)
        result = F.scaled_dot_product_attention(
            q[chunk.start : chunk.stop].view(shape),
            kv[:, :, 0].transpose(1, 2),  # [rows, G, S, D]
            kv[:, :, 1].transpose(1, 2),
            attn_mask=chunk.masks[window],
        )
        out[chunk.start : chunk.stop].view(shape).copy_(result)

    def _load(self, layer: int, keys: _Keys) -> Tensor:
        """[rows * slots, 2, G, D]"""
        if keys.pages is None:
            return self._pool.run(layer, keys.first_page, keys.tokens)
        assert self._buffer is not None
        return self._pool.gather(layer, keys.pages, self._buffer)

"""Attention of extend rows from PyTorch operators: one row at a time, in blocks of queries.

Planned once per step, run once per layer, by the backends whose own kernels are for decode rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from services.worker.attention.masks import additive_mask
from services.worker.attention.paged_keys import PagedKeys, find_keys, load_keys
from services.worker.batch import Batch
from services.worker.kv_pool import KvPool
from services.worker.rows import Rows

QUERY_BLOCK = 512
"""Queries of an extend row that share a mask: bounds its memory and skips keys after the block."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries start..stop of the batch, seeing the first `keys` slots of their row."""

    start: int
    stop: int
    keys: int
    masks: dict[int | None, Tensor | None]
    """By window: [queries, keys]; None = causal from the first key on"""


@dataclass(frozen=True, slots=True)
class Extend:
    """One extend row: tokens start..stop of the batch."""

    start: int
    stop: int
    keys: PagedKeys | None
    """None: nothing was cached, the keys of this step are all there are"""
    blocks: list[_Block]


def plan_extends(pool: KvPool, rows: Rows, batch: Batch, windows: list[int | None]) -> Iterator[Extend]:
    """The extend rows of a step. `windows` are those that some layer has."""
    stop = 0
    for row, cached, length in zip(batch.ext_rows, batch.ext_starts.tolist(), batch.ext_lens.tolist(), strict=True):
        start, stop = stop, stop + length
        keys = find_keys(pool, rows, np.array([row]), cached + length) if cached else None
        yield Extend(start, stop, keys, list(_blocks(pool, windows, start, cached, length)))


def _blocks(pool: KvPool, windows: list[int | None], start: int, cached: int, length: int) -> Iterator[_Block]:
    if not cached and all(w is None or length <= w for w in windows):
        yield _Block(start, start + length, length, dict.fromkeys(windows))
        return
    for at in range(0, length, QUERY_BLOCK):
        until = min(at + QUERY_BLOCK, length)
        query, key = np.arange(cached + at, cached + until)[:, None], np.arange(cached + until)
        masks: dict[int | None, Tensor | None] = {}
        for window in windows:
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            masks[window] = additive_mask(hidden, pool.dtype, pool.device)
        yield _Block(start + at, start + until, cached + until, masks)


def attend_extend(
    pool: KvPool,
    layer: int,
    extend: Extend,
    window: int | None,
    q: Tensor,
    kv: Tensor,
    out: Tensor,
    buffer: Tensor | None,
) -> None:
    """Attend in one layer, whose keys and values are in the pool already.

    Args:
        q: [T, H, D], turned.
        kv: [T, 2, G, D], keys (turned) and values of this step.
        out: [T, H, D]; the row's tokens are written.
        buffer: of `gather_buffer`.
    """
    seen = kv[extend.start : extend.stop] if extend.keys is None else load_keys(pool, layer, extend.keys, buffer)
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

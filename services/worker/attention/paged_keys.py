"""Keys and values of rows for PyTorch's attention, which follows no page table: gathered, or a view of the pool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from services.worker.kv_pool import KvPool
from services.worker.rows import I64, Rows
from services.worker.upload import upload


@dataclass(frozen=True, slots=True)
class PagedKeys:
    """Where the keys and values of one or several rows of equal page count are."""

    pages: Tensor | None
    """[rows * n] to gather; None = in place"""
    first_page: int
    tokens: int
    """Slots per row."""


def find_keys(pool: KvPool, rows: Rows, of: I64, tokens: int) -> PagedKeys:
    """The first `tokens` slots of each of the rows `of`. A single row whose pages are neighbours is read in place."""
    pages = -(-tokens // pool.page_size)
    table = rows.page_table
    if len(of) == 1:
        own = table.host[of[0], :pages]
        if (np.diff(own) == 1).all():
            return PagedKeys(None, int(own[0]), tokens)
    wanted = table.device[:, :pages].index_select(0, upload(of, pool.device)).view(-1)
    return PagedKeys(wanted, 0, pages * pool.page_size)


def gather_buffer(pool: KvPool, keys: Iterable[PagedKeys | None]) -> Tensor | None:
    """Memory in which any of `keys` can be gathered; None where none is."""
    counts = [k.pages.shape[0] for k in keys if k is not None and k.pages is not None]
    return pool.gather_buffer(max(counts)) if counts else None


def load_keys(pool: KvPool, layer: int, keys: PagedKeys, buffer: Tensor | None) -> Tensor:
    """[rows * slots, 2, G, D]"""
    if keys.pages is None:
        return pool.run(layer, keys.first_page, keys.tokens)
    assert buffer is not None
    return pool.gather(layer, keys.pages, buffer)

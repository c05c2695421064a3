"""What FlashInfer is told of a step's rows, and the memory that its splits need: plain numbers, without the package.

FlashInfer describes keys and values by three arrays: where each row's page ids begin, the page ids, and how full each
row's last page is. Used by `flashinfer_backend.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.worker.rows import I64

CTAS_PER_MULTIPROCESSOR = 2
"""FlashInfer splits rows until it has so many blocks, and no further."""
MOST_TILE = 128
"""Queries, times the heads of a group, that one block takes at most."""
ALIGNMENT_BYTES = 256


@dataclass(frozen=True, slots=True)
class PagedLengths:
    """Rows as FlashInfer wants them."""

    indptr: npt.NDArray[np.int32]
    """[R + 1] where each row's page ids begin, and where the last one's end"""
    last_page_len: npt.NDArray[np.int32]
    """[R] tokens in each row's last page, 1..page_size"""

    @property
    def num_indices(self) -> int:
        """Page ids of all rows."""
        return int(self.indptr[-1])


def paged_lengths(seq_lens: I64, page_size: int, size: int | None = None) -> PagedLengths:
    """
    Args:
        seq_lens: [R] tokens that each row sees, at least 1.
        size: pad to this many rows, which see one token each: a row without tokens is not allowed.
    """
    padding = 0 if size is None else size - len(seq_lens)
    padded = np.pad(seq_lens, (0, padding), constant_values=1)
    pages = -(-padded // page_size)
    return PagedLengths(
        indptr=np.concatenate(([0], np.cumsum(pages))).astype(np.int32),
        last_page_len=(padded - (pages - 1) * page_size).astype(np.int32),
    )


def partials_bytes(num_q_heads: int, num_kv_heads: int, head_dim: int, multiprocessors: int, max_rows: int) -> int:
    """Bytes for the partial results of split rows, in float32: enough for every step of up to `max_rows` decode rows.

    Steps of fixed size need the most: FlashInfer keeps room for the tiles that any lengths could give.

    Source: `PrefillPlan` of FlashInfer's scheduler.cuh (0.6.14).
    """
    group = num_q_heads // num_kv_heads
    splits = CTAS_PER_MULTIPROCESSOR * multiprocessors // num_kv_heads
    tile = decode_tile(group)
    decode_tiles = max(splits, -(-max_rows * group // tile) + max_rows - 1)
    queries = max(decode_tiles * tile, splits * MOST_TILE)
    return num_q_heads * queries * (head_dim + 1) * 4 + 2 * ALIGNMENT_BYTES


def plan_bytes(rows: int) -> int:
    """Bytes enough for the plan of a decode step of fixed size: 13 per tile and 8 per row.

    A tile is a split of a row; there are as many as blocks fit the card, or two per row.
    """
    return (1 << 16) + 64 * rows


def decode_tile(group: int) -> int:
    """Queries in a tile of a decode step, the heads of a group counted one by one."""
    if group > 64:
        return MOST_TILE
    return 64 if group > 16 else 16

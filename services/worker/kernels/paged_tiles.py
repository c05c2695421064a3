"""What the attention kernels have in common: tiles of keys and values out of the paged pool, and the softmax's numbers.

Called by `split_attention` and `extend_attention`, inside their loops over the tokens of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

MASKED = tl.constexpr(-1.0e30)
"""Finite, so that a fully masked line cannot make NaN: its weight underflows to 0 in the next rescale or merge."""
LOG2_E = 1.4426950408889634
"""Softmax runs in base 2."""


@triton.jit
def slots_of(table: tl.tensor, token: tl.tensor, PAGE_SIZE: tl.constexpr) -> tl.tensor:
    """Slots (int64) in which the tokens at these positions of a row lie; `table` points to the row's page ids."""
    page = tl.load(table + token // PAGE_SIZE).to(tl.int64)
    return page * PAGE_SIZE + token % PAGE_SIZE


@triton.jit
def load_heads(at: tl.tensor, dim_inside: tl.tensor, WHOLE: tl.constexpr) -> tl.tensor:
    """A tile of heads. `dim_inside`, in the tile's shape, says which elements are a head's own.

    WHOLE: all are, so the load needs no mask, which would cost its width.
    """
    if WHOLE:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=dim_inside, other=0.0)
    return tile

"""The page ids of a step's rows one after the other, from the page table on the device.

What an attention library wants that knows no page table. One launch per step, which serves every layer; inside a CUDA
graph it follows rows that grow. Called by `attention/flashinfer_backend.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS

BLOCK = 256
PROGRAMS_PER_ROW = 8
"""A row of a long context alone in its batch would else be copied by one multiprocessor."""


@triton.jit(do_not_specialize_on_alignment=INDEX_POINTERS)
def _page_indices_kernel(
    page_table: tl.tensor,
    rows: tl.tensor,
    kv_indptr: tl.tensor,
    indices: tl.tensor,
    table_stride: tl.int64,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    row = tl.load(rows + tl.program_id(0)).to(tl.int64)
    begin = tl.load(kv_indptr + tl.program_id(0))
    count = tl.load(kv_indptr + tl.program_id(0) + 1) - begin
    known = tl.where(row < 0, 0, count)
    for first in range(tl.program_id(1) * BLOCK, count, STEP):
        at = first + tl.arange(0, BLOCK)
        page = tl.load(page_table + row * table_stride + at, mask=at < known, other=0)
        tl.store(indices + begin + at, page, mask=at < count)


def page_indices(page_table: torch.Tensor, rows: torch.Tensor, kv_indptr: torch.Tensor, indices: torch.Tensor) -> None:
    """Write the first pages of each row to `indices`.

    Args:
        page_table: [max_rows, max_pages] int32 page ids.
        rows: [R] int32; negative = padding, whose pages are page 0.
        kv_indptr: [R + 1] int32: row r's pages go to kv_indptr[r] .. kv_indptr[r + 1] - 1.
        indices: [at least kv_indptr[R]] int32, written.
    """
    _page_indices_kernel[(rows.shape[0], PROGRAMS_PER_ROW)](
        page_table, rows, kv_indptr, indices, page_table.stride(0),
        BLOCK=BLOCK, STEP=BLOCK * PROGRAMS_PER_ROW, num_warps=2,
    )  # fmt: skip

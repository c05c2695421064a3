"""What a decode step feeds to the model, read from the state of the rows on the device.

One launch, so that a decode step needs nothing from the host but which rows take part, and those only when they
change. Called by the worker's decode program, inside CUDA graphs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS

BLOCK = 64


class DecodeInputs(NamedTuple):
    """[R] each; a tuple, so that a kernel takes it as one argument."""

    ids: torch.Tensor
    """int64, 0 for padding"""
    positions: torch.Tensor
    """int64, rotary; 0 for padding"""
    slots: torch.Tensor
    """int64, -1 for padding: nothing is stored"""
    seq_lens: torch.Tensor
    """int32, the new token included; 0 for padding"""

    def first(self, rows: int) -> DecodeInputs:
        """Views of the first `rows`."""
        return DecodeInputs(*(part[:rows] for part in self))


def decode_inputs_buffer(max_rows: int, device: torch.device) -> DecodeInputs:
    """Memory for batches of up to `max_rows`."""

    def wide() -> torch.Tensor:
        return torch.zeros(max_rows, dtype=torch.int64, device=device)

    return DecodeInputs(wide(), wide(), wide(), torch.zeros(max_rows, dtype=torch.int32, device=device))


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=INDEX_POINTERS)
def _decode_inputs_kernel(
    rows: tl.tensor,
    lengths: tl.tensor,
    deltas: tl.tensor,
    last_tokens: tl.tensor,
    page_table: tl.tensor,
    out: DecodeInputs,
    table_stride: tl.int64,
    num_rows: tl.int32,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_rows
    row = tl.load(rows + index, mask=inside, other=-1).to(tl.int64)
    real = row >= 0
    position = tl.load(lengths + row, mask=real, other=0)
    page = tl.load(page_table + row * table_stride + position // PAGE_SIZE, mask=real, other=0).to(tl.int64)
    slot = tl.where(real, page * PAGE_SIZE + position % PAGE_SIZE, -1)
    tl.store(out.ids + index, tl.load(last_tokens + row, mask=real, other=0), mask=inside)
    tl.store(out.positions + index, position + tl.load(deltas + row, mask=real, other=0), mask=inside)
    tl.store(out.slots + index, slot, mask=inside)
    tl.store(out.seq_lens + index, tl.where(real, position + 1, 0).to(tl.int32), mask=inside)
    tl.store(lengths + row, position + 1, mask=real)


def decode_inputs(
    rows: torch.Tensor,
    lengths: torch.Tensor,
    deltas: torch.Tensor,
    last_tokens: torch.Tensor,
    page_table: torch.Tensor,
    out: DecodeInputs,
    page_size: int,
) -> None:
    """Feed each row its last token at its next position, and count it.

    Args:
        rows: [R] int32, no row twice; negative = padding.
        lengths: [max_rows] int64 tokens in the pool; one more afterwards.
        deltas: [max_rows] int64 rotary position minus index.
        last_tokens: [max_rows] int64.
        page_table: [max_rows, max_pages] int32 page ids.
        out: of R rows, written.
    """
    _decode_inputs_kernel[(triton.cdiv(rows.shape[0], BLOCK),)](
        rows, lengths, deltas, last_tokens, page_table, out, page_table.stride(0), rows.shape[0],
        PAGE_SIZE=page_size, BLOCK=BLOCK, num_warps=2,
    )  # fmt: skip

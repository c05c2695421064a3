"""A paged KV pool with scattered pages, unused slots poisoned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.unit.worker.kernels.closeness import POISON


@dataclass(frozen=True)
class PagedCase:
    """One batch: ragged queries over rows of a poisoned pool."""

    q: torch.Tensor
    k_pool: torch.Tensor
    v_pool: torch.Tensor
    page_table: torch.Tensor
    rows: torch.Tensor
    seq_lens: torch.Tensor
    cu_q: torch.Tensor


def paged_case(
    seq_lens: list[int],
    q_lens: list[int],
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> PagedCase:
    """Rows in random places of the page table, pages in random order, every slot that no row owns NaN."""
    num_pages = sum(-(-n // page_size) for n in seq_lens) + 3
    most_pages = max([-(-n // page_size) for n in seq_lens] + [1]) + 1
    pools = [torch.full((num_pages * page_size, num_kv_heads, head_dim), POISON, device=device) for _ in range(2)]
    order = torch.randperm(num_pages).tolist()
    rows = torch.randperm(len(seq_lens) + 2)[: len(seq_lens)]
    table = torch.full((len(seq_lens) + 2, most_pages), 2**30, dtype=torch.int32)  # an unread entry may be anything
    for row, length in zip(rows.tolist(), seq_lens, strict=True):
        for i in range(-(-length // page_size)):
            page = order.pop()
            table[row, i] = page
            for pool in pools:
                begin, count = page * page_size, min(page_size, length - i * page_size)
                pool[begin : begin + count] = torch.randn(count, num_kv_heads, head_dim, device=device)
    cu_q = torch.tensor([0, *q_lens], device=device).cumsum(0).to(torch.int32)
    return PagedCase(
        q=torch.randn(sum(q_lens), num_q_heads, head_dim, device=device).to(dtype),
        k_pool=pools[0].to(dtype),
        v_pool=pools[1].to(dtype),
        page_table=table.to(device),
        rows=rows.to(torch.int32).to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        cu_q=cu_q,
    )

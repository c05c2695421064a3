"""Random paged batches of serving size for the attention sections."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.kernel_sections.timing import sets_needed


@dataclass(frozen=True)
class PagedBatch:
    """Queries and lengths of one batch over several layers' pools (rotated so that each is cold)."""

    q: torch.Tensor
    pools: list[tuple[torch.Tensor, torch.Tensor]]
    page_table: torch.Tensor
    rows: torch.Tensor
    seq_lens: torch.Tensor
    cu_q: torch.Tensor
    kv_bytes: int
    page_size: int

    @property
    def scale(self) -> float:
        return float(self.q.shape[2]) ** -0.5


def paged_batch(
    seq_lens: list[int],
    q_lens: list[int],
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    cold: bool = True,
    kv_dtype: torch.dtype = torch.bfloat16,
) -> PagedBatch:
    """Pages in random order over a pool of just the tokens needed."""
    pages = [-(-n // page_size) for n in seq_lens]
    order = torch.randperm(sum(pages), device="cuda").to(torch.int32)
    table = torch.zeros((len(seq_lens), -(-max(pages) // 16) * 16), dtype=torch.int32, device="cuda")
    for row, part in enumerate(torch.split(order, pages)):
        table[row, : part.numel()] = part
    kv_bytes = 2 * sum(seq_lens) * num_kv_heads * head_dim * kv_dtype.itemsize
    shape = (sum(pages) * page_size, 2, num_kv_heads, head_dim)

    def pool() -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(kv_dtype)
        return both[:, 0], both[:, 1]  # side by side, as in the engine's pool

    return PagedBatch(
        q=torch.randn(sum(q_lens), num_q_heads, head_dim, device="cuda", dtype=torch.bfloat16),
        pools=[pool() for _ in range(sets_needed(kv_bytes) if cold else 1)],
        page_table=table,
        rows=torch.arange(len(seq_lens), dtype=torch.int32, device="cuda"),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device="cuda"),
        cu_q=torch.tensor([0, *q_lens], device="cuda").cumsum(0).to(torch.int32),
        kv_bytes=kv_bytes,
        page_size=page_size,
    )

"""The pages of a step's rows as one list."""

from __future__ import annotations

import itertools

import pytest
import torch

from services.worker.kernels.page_indices import BLOCK, PROGRAMS_PER_ROW, page_indices


@pytest.mark.parametrize("counts", [[1], [3, 0, 7, 1], [BLOCK * (PROGRAMS_PER_ROW + 1) + 5, 2, BLOCK]])
def test_the_rows_pages_follow_each_other_and_padding_is_page_0(counts: list[int], device: torch.device) -> None:
    most, width = len(counts) + 2, max(counts) + 3
    table = torch.randint(1, 10_000, (most, width), dtype=torch.int32, device=device)
    rows = torch.randperm(most, device=device)[: len(counts)].int()
    rows[-1] = -1
    indptr = torch.tensor([0, *counts], device=device).cumsum(0).int()
    indices = torch.full((sum(counts) + 4,), -7, dtype=torch.int32, device=device)
    page_indices(table, rows, indptr, indices)
    want = [table[row, :count].tolist() for row, count in zip(rows[:-1].tolist(), counts, strict=False)]
    assert indices.tolist() == [*itertools.chain(*want), *[0] * counts[-1], *[-7] * 4]

"""Decode attention of rows that share a prefix, against fp64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from services.worker.attention.device_plans import SharedPlan
from services.worker.attention.shared_prefix import SharedPrefixes
from services.worker.kernels.reference.attention import paged_attention
from services.worker.kernels.shared_attention import Sharing, max_members, shared_attention, shared_workspace
from services.worker.kernels.split_attention import split_attention
from services.worker.kernels.split_plan import SplitConfig, plan_split, split_workspace
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, POISON, assert_close
from tests.unit.worker.kernels.paged import PagedCase, paged_case

LENGTHS = [70, 200, 64, 129, 0, 30, 195, 128]


def shared_case(
    chunks: list[tuple[list[int], int]], heads: int, page_size: int, dtype: torch.dtype, device: torch.device
) -> PagedCase:
    """Rows of LENGTHS tokens; members of a chunk have the pages of its first one for the tokens that they share."""
    case = paged_case(
        [length + 1 if length else 0 for length in LENGTHS], [1] * len(LENGTHS),
        num_q_heads=heads, num_kv_heads=2, head_dim=64, page_size=page_size, dtype=dtype, device=device,
    )  # fmt: skip
    table = case.page_table.clone()
    for members, tokens in chunks:
        pages = tokens // page_size
        for member in members[1:]:
            table[case.rows[member].item(), :pages] = table[case.rows[members[0]].item(), :pages]
    return dataclasses.replace(case, page_table=table)


def run(case: PagedCase, chunks: list[tuple[list[int], int]], page_size: int, workers: int) -> torch.Tensor:
    heads, dim = case.q.shape[1:]
    count, device = len(LENGTHS), case.q.device
    config = SplitConfig(block_n=32, num_warps=4, num_stages=2, ctas_per_sm=2)
    shared = shared_workspace(count, heads, 2, dim, case.k_pool.dtype, device, config=config, num_workers=workers)
    own = split_workspace(count, heads, 2, dim, case.k_pool.dtype, device, config=config, num_workers=workers + 1)
    for workspace in (shared.split, own):
        workspace.partial_out.fill_(POISON)
        workspace.partial_lse.fill_(POISON)
    plan = SharedPlan(count, device)
    found = SharedPrefixes(
        np.array([member for members, _ in chunks for member in members]),
        np.array([len(members) for members, _ in chunks]), np.array([tokens for _, tokens in chunks]),
    )  # fmt: skip
    plan.set(found, case.rows.cpu().numpy().astype(np.int64))
    sharing: Sharing = plan.first(count)
    out = torch.full_like(case.q, POISON)
    plan_split(shared.split, sharing.lens)
    plan_split(own, case.seq_lens, starts=sharing.starts)
    scale = dim**-0.5
    shared_attention(
        case.q, case.k_pool, case.v_pool, case.page_table, sharing, shared, page_size=page_size, scale=scale
    )
    split_attention(
        case.q, case.k_pool, case.v_pool, case.page_table, case.rows, case.seq_lens, own, out,
        page_size=page_size, scale=scale, shared=(sharing, shared),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("heads", "workers"), [(8, 3), (2, 1), (8, 40), (16, 2)])
def test_rows_with_and_without_company_equal_the_reference(
    heads: int, workers: int, page_size: int, dtype: torch.dtype, device: torch.device
) -> None:
    chunks = [([1, 6, 3], 128), ([7, 0], 64)]
    case = shared_case(chunks, heads, page_size, dtype, device)
    want = paged_attention(
        case.q.double(), case.k_pool.double(), case.v_pool.double(), case.page_table, case.rows, case.seq_lens,
        case.cu_q, page_size=page_size, scale=case.q.shape[2] ** -0.5, window=0,
    )  # fmt: skip
    assert_close(run(case, chunks, page_size, workers), want)


def test_a_tile_holds_whole_rows_of_a_group() -> None:
    assert [max_members(heads, 8) for heads in (8, 16, 32, 40, 64, 128, 1024)] == [64, 32, 16, 12, 8, 4, 0]

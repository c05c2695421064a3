"""Decode attention with equal shares against fp64."""

from __future__ import annotations

import pytest
import torch

from services.worker.kernels.reference.attention import paged_attention
from services.worker.kernels.split_attention import split_attention
from services.worker.kernels.split_plan import SplitConfig, plan_split, split_workspace
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, POISON, assert_close
from tests.unit.worker.kernels.paged import PagedCase, paged_case


def run(case: PagedCase, page_size: int, *, workers: int, window: int = 0, max_q_len: int = 1) -> torch.Tensor:
    num_q_heads, head_dim = case.q.shape[1:]
    workspace = split_workspace(
        case.rows.shape[0] + 1,
        num_q_heads,
        case.k_pool.shape[1],
        head_dim,
        case.k_pool.dtype,
        case.q.device,
        max_q_len=max_q_len,
        window=window,
        config=SplitConfig(block_n=16, num_warps=4, num_stages=2, ctas_per_sm=2),
        num_workers=workers,
    )
    workspace.partial_out.fill_(POISON)
    workspace.partial_lse.fill_(POISON)
    cu_q = case.cu_q if max_q_len > 1 else None
    out = torch.full_like(case.q, POISON)
    plan_split(workspace, case.seq_lens, cu_q)
    split_attention(
        case.q, case.k_pool, case.v_pool, case.page_table, case.rows, case.seq_lens, workspace, out,
        page_size=page_size, scale=head_dim**-0.5, cu_q=cu_q,
    )  # fmt: skip
    return out


def reference(case: PagedCase, page_size: int, window: int = 0) -> torch.Tensor:
    return paged_attention(
        case.q.double(), case.k_pool.double(), case.v_pool.double(), case.page_table, case.rows, case.seq_lens,
        case.cu_q, page_size=page_size, scale=case.q.shape[2] ** -0.5, window=window,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize("page_size", [1, 16])
def test_uneven_rows_cut_by_workers_equal_the_reference(
    dtype: torch.dtype, page_size: int, device: torch.device
) -> None:
    case = paged_case(
        [70, 1, 0, 33, 16], [1] * 5,
        num_q_heads=4, num_kv_heads=2, head_dim=64, page_size=page_size, dtype=dtype, device=device,
    )  # fmt: skip
    assert_close(run(case, page_size, workers=4), reference(case, page_size))


@pytest.mark.parametrize("workers", [1, 3, 40])
def test_any_number_of_workers_gives_the_same_result(workers: int, device: torch.device) -> None:
    case = paged_case(
        [0, 50, 17], [1] * 3,
        num_q_heads=2, num_kv_heads=1, head_dim=64, page_size=16, dtype=torch.float32, device=device,
    )  # fmt: skip
    assert_close(run(case, 16, workers=workers), reference(case, 16))


@pytest.mark.parametrize(
    ("num_q_heads", "num_kv_heads", "head_dim"), [(1, 1, 80), (7, 1, 96), (16, 1, 128), (2, 2, 256)]
)
def test_groups_and_head_sizes(num_q_heads: int, num_kv_heads: int, head_dim: int, device: torch.device) -> None:
    case = paged_case(
        [37, 5], [1, 1],
        num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=4,
        dtype=torch.float16, device=device,
    )  # fmt: skip
    assert_close(run(case, 4, workers=2), reference(case, 4))


@pytest.mark.parametrize("window", [1, 13, 100])
def test_a_sliding_window_reads_its_newest_tokens_only(window: int, device: torch.device) -> None:
    case = paged_case(
        [60, 12, 1], [1] * 3,
        num_q_heads=2, num_kv_heads=1, head_dim=64, page_size=16, dtype=torch.float32, device=device,
    )  # fmt: skip
    assert_close(run(case, 16, workers=3, window=window), reference(case, 16, window))


@pytest.mark.parametrize("window", [0, 9])
def test_rows_of_several_queries_are_causal(window: int, device: torch.device) -> None:
    case = paged_case(
        [40, 3, 0, 20, 1], [4, 3, 0, 1, 1],
        num_q_heads=6, num_kv_heads=2, head_dim=64, page_size=16, dtype=torch.float32, device=device,
    )  # fmt: skip
    assert_close(run(case, 16, workers=5, window=window, max_q_len=4), reference(case, 16, window))


def test_padding_rows_give_zeros_and_no_rows_launch_nothing(device: torch.device) -> None:
    case = paged_case(
        [0, 0], [1, 1], num_q_heads=2, num_kv_heads=1, head_dim=64, page_size=1, dtype=torch.float32, device=device
    )
    assert torch.equal(run(case, 1, workers=2), torch.zeros_like(case.q))
    empty = paged_case(
        [], [], num_q_heads=2, num_kv_heads=1, head_dim=64, page_size=1, dtype=torch.float32, device=device
    )
    assert run(empty, 1, workers=2).shape == (0, 2, 64)

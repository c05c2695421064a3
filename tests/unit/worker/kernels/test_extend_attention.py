"""Prefill and mixed attention against fp64."""

from __future__ import annotations

import pytest
import torch

from services.worker.kernels.extend_attention import extend_attention
from services.worker.kernels.extend_plan import ExtendConfig, plan_extend
from services.worker.kernels.reference.attention import paged_attention
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, POISON, assert_close
from tests.unit.worker.kernels.paged import PagedCase, paged_case

CONFIG = ExtendConfig(block_m=32, block_n=16, num_warps=4, num_stages=2)


def run(
    case: PagedCase, page_size: int, *, window: int = 0, config: ExtendConfig = CONFIG, spare_tokens: int = 0
) -> torch.Tensor:
    group = case.q.shape[1] // case.k_pool.shape[1]
    plan = plan_extend(case.cu_q, case.q.shape[0] + spare_tokens, group, config)
    out = torch.full_like(case.q, POISON)
    extend_attention(
        case.q, case.k_pool, case.v_pool, case.page_table, case.rows, case.seq_lens, case.cu_q, plan, out,
        page_size=page_size, scale=case.q.shape[2] ** -0.5, window=window,
    )  # fmt: skip
    return out


def reference(case: PagedCase, page_size: int, window: int = 0) -> torch.Tensor:
    return paged_attention(
        case.q.double(), case.k_pool.double(), case.v_pool.double(), case.page_table, case.rows, case.seq_lens,
        case.cu_q, page_size=page_size, scale=case.q.shape[2] ** -0.5, window=window,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize("page_size", [1, 16])
def test_chunks_whole_prompts_and_decode_rows_mix(dtype: torch.dtype, page_size: int, device: torch.device) -> None:
    case = paged_case(
        [50, 23, 40, 0, 1], [7, 23, 1, 0, 1],
        num_q_heads=4, num_kv_heads=2, head_dim=64, page_size=page_size, dtype=dtype, device=device,
    )  # fmt: skip
    assert_close(run(case, page_size), reference(case, page_size))


@pytest.mark.parametrize(
    ("num_q_heads", "num_kv_heads", "head_dim"), [(1, 1, 80), (7, 1, 96), (16, 1, 128), (2, 2, 256)]
)
def test_groups_and_head_sizes(num_q_heads: int, num_kv_heads: int, head_dim: int, device: torch.device) -> None:
    case = paged_case(
        [21, 18], [5, 18],
        num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=4,
        dtype=torch.float16, device=device,
    )  # fmt: skip
    assert_close(run(case, 4), reference(case, 4))


@pytest.mark.parametrize("window", [1, 9, 100])
def test_a_sliding_window_cuts_old_tokens(window: int, device: torch.device) -> None:
    case = paged_case(
        [45, 40, 3], [40, 2, 3],
        num_q_heads=2, num_kv_heads=1, head_dim=64, page_size=16, dtype=torch.float32, device=device,
    )  # fmt: skip
    assert_close(run(case, 16, window=window), reference(case, 16, window))


def test_a_plan_larger_than_the_batch_leaves_the_rest_alone(device: torch.device) -> None:
    case = paged_case(
        [17, 4], [17, 2], num_q_heads=6, num_kv_heads=2, head_dim=64, page_size=2, dtype=torch.float32, device=device
    )
    assert_close(run(case, 2, spare_tokens=200), reference(case, 2))


def test_no_rows_launch_nothing(device: torch.device) -> None:
    case = paged_case(
        [], [], num_q_heads=2, num_kv_heads=1, head_dim=64, page_size=1, dtype=torch.float32, device=device
    )
    assert run(case, 1).shape == (0, 2, 64)

"""Attention of decode rows over a poisoned pool against fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.worker.cpu_kernels.decode_attention import decode_kernel, parts_for
from services.worker.kernels.reference.attention import paged_attention
from tests.unit.worker.kernels.closeness import POISON, assert_close
from tests.unit.worker.kernels.paged import paged_case

FIRST = 3
"""Tokens before those of the decode rows."""


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("window", [0, 1, 21])
@pytest.mark.parametrize(
    ("seq_lens", "page_size", "num_q_heads", "num_kv_heads", "head_dim"),
    [
        ([1], 16, 9, 3, 64),
        ([5, 16, 17, 40, 100], 16, 9, 3, 64),
        ([300], 1, 9, 3, 64),
        ([31, 2, 33], 1, 4, 4, 16),
        ([64, 7, 129], 12, 14, 2, 80),
        ([47, 200], 64, 8, 1, 16),
    ],
)
def test_decode_attention_equals_the_reference_however_the_work_is_cut(
    seq_lens: list[int],
    page_size: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int,
    parts: int,
) -> None:
    count = len(seq_lens)
    case = paged_case(
        seq_lens, [1] * count, num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        page_size=page_size, dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    qkv = torch.full((FIRST + count + 1, (num_q_heads + 2 * num_kv_heads) * head_dim), POISON)
    qkv[FIRST : FIRST + count, : num_q_heads * head_dim] = case.q.view(count, -1)
    out = torch.full((FIRST + count + 1, num_q_heads, head_dim), POISON)
    decode_kernel(head_dim)(
        qkv.numpy(), torch.stack((case.k_pool, case.v_pool), 1).numpy(), case.page_table.numpy(),
        case.rows.long().numpy(), case.seq_lens.long().numpy(), out.numpy(), FIRST, page_size, window,
        np.array([parts]),
    )  # fmt: skip
    want = paged_attention(
        case.q.double(), case.k_pool.double(), case.v_pool.double(), case.page_table, case.rows, case.seq_lens,
        case.cu_q, page_size=page_size, scale=head_dim**-0.5, window=window,
    )  # fmt: skip
    assert_close(out[FIRST : FIRST + count], want)
    assert out[:FIRST].isnan().all()
    assert out[FIRST + count :].isnan().all()


def test_scores_far_apart_and_huge_do_not_overflow() -> None:
    pool = torch.randn(64, 2, 1, 16)
    pool[:, 0] *= 1e4
    qkv, out = torch.randn(1, 3 * 16) * 10, torch.full((1, 1, 16), POISON)
    table, rows, lens = np.arange(64, dtype=np.int32)[None], np.zeros(1, np.int64), np.full(1, 64)
    decode_kernel(16)(qkv.numpy(), pool.numpy(), table, rows, lens, out.numpy(), 0, 1, 0, np.array([1]))
    scores = (pool[:, 0, 0].double() @ qkv[0, :16].double()) / 4
    assert_close(out[0, 0], scores.softmax(0) @ pool[:, 1, 0].double(), 1e-3)


def test_work_is_cut_only_where_each_thread_gets_enough() -> None:
    assert parts_for(np.array([20]), 0, 8) == 1
    assert parts_for(np.array([4000]), 0, 8) == 8
    assert parts_for(np.array([4000]), 20, 8) == 1
    assert parts_for(np.array([100] * 16), 0, 2) == 2
    assert parts_for(np.zeros(0, np.int64), 0, 2) == 1

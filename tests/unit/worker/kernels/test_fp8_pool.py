"""KV pools in fp8 with a scale: written by the rotary kernel, read by both attention kernels."""

from __future__ import annotations

import pytest
import torch

from services.worker.kernels.extend_attention import extend_attention
from services.worker.kernels.extend_plan import ExtendConfig, plan_extend
from services.worker.kernels.reference import elementwise
from services.worker.kernels.reference.attention import paged_attention
from services.worker.kernels.rotary import rotate_and_store
from services.worker.kernels.split_attention import split_attention
from services.worker.kernels.split_plan import SplitConfig, plan_split, split_workspace
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, assert_close

FP8 = torch.float8_e4m3fn
K_SCALE, V_SCALE = 0.5, 2.0


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize("decode", [True, False])
def test_scaled_fp8_pools_give_attention_close_to_exact(decode: bool, dtype: torch.dtype, device: torch.device) -> None:
    length, queries, num_q_heads, num_kv_heads, head_dim = 37, 1 if decode else 6, 4, 2, 64
    pools = [torch.randn(48, num_kv_heads, head_dim, device=device) for _ in range(2)]
    stored = [(pool / scale).to(FP8) for pool, scale in zip(pools, (K_SCALE, V_SCALE), strict=True)]
    exact = [pool.double() * scale for pool, scale in zip(stored, (K_SCALE, V_SCALE), strict=True)]
    q = torch.randn(queries, num_q_heads, head_dim, device=device).to(dtype)
    table = torch.randperm(3, device=device).to(torch.int32)[None]
    rows = torch.zeros(1, dtype=torch.int32, device=device)
    seq_lens = torch.tensor([length], dtype=torch.int32, device=device)
    cu_q = torch.tensor([0, queries], dtype=torch.int32, device=device)
    out = torch.full_like(q, float("nan"))
    if decode:
        config = SplitConfig(block_n=16, num_warps=4, num_stages=2, ctas_per_sm=1)
        workspace = split_workspace(1, num_q_heads, num_kv_heads, head_dim, FP8, device, config=config, num_workers=2)
        plan_split(workspace, seq_lens)
        split_attention(
            q,
            stored[0],
            stored[1],
            table,
            rows,
            seq_lens,
            workspace,
            out,
            page_size=16,
            scale=head_dim**-0.5,
            k_scale=K_SCALE,
            v_scale=V_SCALE,
        )
    else:
        plan = plan_extend(cu_q, queries, 2, ExtendConfig(block_m=16, block_n=16, num_warps=4, num_stages=2))
        extend_attention(
            q,
            stored[0],
            stored[1],
            table,
            rows,
            seq_lens,
            cu_q,
            plan,
            out,
            page_size=16,
            scale=head_dim**-0.5,
            k_scale=K_SCALE,
            v_scale=V_SCALE,
        )
    want = paged_attention(
        q.double(), exact[0], exact[1], table, rows, seq_lens, cu_q, page_size=16, scale=head_dim**-0.5
    )
    assert_close(out, want)


def test_rotary_writes_scaled_fp8(device: torch.device) -> None:
    qkv = torch.randn(3, 4 * 64, device=device).to(torch.float16)
    positions = torch.arange(3, device=device, dtype=torch.int32)
    cos_sin = torch.randn(3, 64, device=device)
    slots = torch.tensor([4, 0, 2], dtype=torch.int32, device=device)
    stored = [torch.zeros(5, 1, 64, device=device, dtype=FP8) for _ in range(2)]
    exact = [torch.zeros(5, 1, 64, device=device, dtype=torch.float64) for _ in range(2)]
    elementwise.rotate_and_store(qkv.double(), positions, cos_sin.double(), exact[0], exact[1], slots, 2)
    rotate_and_store(qkv, positions, cos_sin, stored[0], stored[1], slots, 2, k_scale=K_SCALE, v_scale=V_SCALE)
    tolerance = 0.04 if qkv.is_cuda else 0.25  # the interpreter truncates where the hardware rounds
    assert_close(stored[0].float() * K_SCALE, exact[0], tolerance)
    assert_close(stored[1].float() * V_SCALE, exact[1], tolerance)

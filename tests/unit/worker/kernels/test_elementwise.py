"""Norms, activation and rotary with KV write against fp64."""

from __future__ import annotations

import pytest
import torch

from services.worker.kernels import rms_norm, rotary, silu_and_mul
from services.worker.kernels.reference import elementwise
from tests.unit.worker.kernels.closeness import POISON, assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, device=device).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(0, 64), (1, 1), (3, 100), (5, 1024)])
def test_rms_norm_equals_the_reference_and_writes_every_element(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    x = random(tokens, width + 8, dtype=dtype, device=device)[:, :width]
    weight = random(width, dtype=dtype, device=device)
    out = torch.full((tokens, width), POISON, dtype=dtype, device=device)
    rms_norm.rms_norm(x, weight, 1e-5, out)
    assert_close(out, elementwise.rms_norm(x.double(), weight.double(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(0, 64), (1, 80), (4, 512)])
def test_add_rms_norm_updates_the_residual_and_norms_its_rounded_value(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, residual = (random(tokens, width, dtype=dtype, device=device) for _ in range(2))
    weight = random(width, dtype=dtype, device=device)
    added = (x.float() + residual.float()).to(dtype)
    want = elementwise.rms_norm(added.double(), weight.double(), 1e-6)
    rms_norm.add_rms_norm(x, residual, weight, 1e-6, x)
    assert_close(residual, added)
    if residual.is_cuda:  # the interpreter truncates where the hardware rounds
        assert torch.equal(residual, added)
    assert_close(x, want)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 64), (5, 80), (16, 128)])
def test_head_rms_norm_touches_only_its_view(heads: int, head_dim: int, device: torch.device) -> None:
    fused = random(3, (heads + 2) * head_dim, dtype=torch.bfloat16, device=device)
    before = fused.clone()
    weight = random(head_dim, dtype=torch.bfloat16, device=device)
    view = fused.view(3, heads + 2, head_dim)[:, :heads]
    want = elementwise.rms_norm(view.double(), weight.double(), 1e-6)
    rms_norm.head_rms_norm(view, weight, 1e-6)
    assert_close(view, want)
    assert torch.equal(fused[:, heads * head_dim :], before[:, heads * head_dim :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(0, 8), (1, 3), (2, 1500)])
def test_silu_and_mul_equals_the_reference(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = random(tokens, 2 * width, dtype=dtype, device=device) * 4
    out = torch.full((tokens, width), POISON, dtype=dtype, device=device)
    silu_and_mul.silu_and_mul(gate_up, out)
    assert_close(out, elementwise.silu_and_mul(gate_up.double()))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("tokens", "num_q_heads", "num_kv_heads", "head_dim"),
    [(0, 2, 1, 64), (1, 4, 4, 64), (7, 14, 2, 80), (3, 32, 8, 128)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_turns_q_in_place_and_writes_k_and_v_to_their_slots(
    tokens: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    norm: bool,
    device: torch.device,
) -> None:
    width = (num_q_heads + 2 * num_kv_heads) * head_dim
    qkv = random(tokens, width, dtype=dtype, device=device)
    positions = torch.randint(0, 50, (tokens,), device=device, dtype=torch.int32)
    cos_sin = torch.randn(50, head_dim, device=device)
    slots = torch.randperm(20, device=device)[:tokens].to(torch.int32)
    if tokens > 2:
        slots[1] = -1  # padding
    weights = (random(head_dim, dtype=dtype, device=device), random(head_dim, dtype=dtype, device=device), 1e-6)
    qk_norm = weights if norm else None
    k_pool, v_pool = (torch.full((20, num_kv_heads, head_dim), POISON, dtype=dtype, device=device) for _ in range(2))

    exact, exact_k, exact_v = qkv.double(), k_pool.double(), v_pool.double()
    exact_norm = (weights[0].double(), weights[1].double(), 1e-6) if norm else None
    elementwise.rotate_and_store(exact, positions, cos_sin.double(), exact_k, exact_v, slots, num_q_heads, exact_norm)
    rotary.rotate_and_store(qkv, positions, cos_sin, k_pool, v_pool, slots, num_q_heads, qk_norm)

    assert_close(qkv, exact)
    written = slots[slots >= 0].long()
    for pool, want in ((k_pool, exact_k), (v_pool, exact_v)):
        assert_close(pool[written], want[written])
        untouched = torch.ones(20, dtype=torch.bool, device=device)
        untouched[written] = False
        assert pool[untouched].isnan().all()

"""Norms, activation, exponential and rotary with KV write against fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.worker.cpu_kernels import rms_norm, rotary, silu_and_mul
from services.worker.cpu_kernels.exponential import exp
from services.worker.kernels.reference import elementwise
from tests.unit.worker.kernels.closeness import POISON, assert_close

SHAPES = pytest.mark.parametrize(("tokens", "width"), [(0, 64), (1, 1), (3, 100), (5, 577), (131, 1024)])


@SHAPES
@pytest.mark.usefixtures("threads")
def test_rms_norm_equals_the_reference_and_writes_every_element(tokens: int, width: int) -> None:
    x, weight, out = torch.randn(tokens, width), torch.randn(width), torch.full((tokens, width), POISON)
    rms_norm.rms_norm(x.numpy(), weight.numpy(), np.float32(1e-5), out.numpy())
    assert_close(out, elementwise.rms_norm(x.double(), weight.double(), 1e-5))


@SHAPES
@pytest.mark.usefixtures("threads")
def test_add_rms_norm_updates_the_residual_and_norms_the_sum(tokens: int, width: int) -> None:
    residual, delta, weight = torch.randn(tokens, width), torch.randn(tokens, width), torch.randn(width)
    added = residual + delta
    rms_norm.add_rms_norm(residual.numpy(), delta.numpy(), weight.numpy(), np.float32(1e-6))
    assert torch.equal(residual, added)
    assert_close(delta, elementwise.rms_norm(added.double(), weight.double(), 1e-6))


@SHAPES
@pytest.mark.usefixtures("threads")
def test_silu_and_mul_equals_the_reference_also_far_from_zero(tokens: int, width: int) -> None:
    gate_up, out = torch.randn(tokens, 2 * width) * 60, torch.full((tokens, width), POISON)
    silu_and_mul.silu_and_mul(gate_up.numpy(), out.numpy())
    assert_close(out, elementwise.silu_and_mul(gate_up.double()))


def test_exp_is_exact_to_two_units_in_the_last_place_over_its_range() -> None:
    for x in np.random.default_rng().uniform(-86.9, 87.9, 3000).astype(np.float32):
        want = np.exp(np.float64(x))
        assert abs(exp(x) - want) <= 2 * 2.0**-23 * want, x


def test_exp_beyond_its_range_is_that_of_the_nearest_argument() -> None:
    assert 0.0 < exp(np.float32(-1e30)) < 1e-37
    assert np.isfinite(exp(np.float32(1e30)))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("tokens", "num_q_heads", "num_kv_heads", "head_dim"),
    [(0, 2, 1, 64), (1, 4, 4, 8), (7, 14, 2, 80), (18, 32, 8, 128)],
)
def test_rotary_turns_q_and_k_in_place_and_writes_k_and_v_to_their_slots(
    tokens: int, num_q_heads: int, num_kv_heads: int, head_dim: int, normed: bool
) -> None:
    qkv = torch.randn(tokens, (num_q_heads + 2 * num_kv_heads) * head_dim)
    cos, sin = (torch.randn(tokens, head_dim // 2) for _ in range(2))
    slots = torch.randperm(20)[:tokens]
    weights = torch.randn(2, head_dim)
    pool = torch.full((20, 2, num_kv_heads, head_dim), POISON)

    exact, keys, values = qkv.double(), pool[:, 0].double(), pool[:, 1].double()
    norm = (weights[0].double(), weights[1].double(), 1e-6) if normed else None
    table, positions = torch.cat((cos, sin), dim=1).double(), torch.arange(tokens)
    elementwise.rotate_and_store(exact, positions, table, keys, values, slots, num_q_heads, norm)

    rotary.rotate_and_store(
        qkv.numpy(), torch.cat((cos, cos), 1).numpy(), torch.cat((-sin, sin), 1).numpy(), pool.numpy(), slots.numpy(),
        num_q_heads, normed, weights[0].numpy(), weights[1].numpy(), np.float32(1e-6),
    )  # fmt: skip
    queries = num_q_heads * head_dim
    assert_close(qkv[:, :queries], exact[:, :queries])
    assert_close(qkv[:, queries:].view(tokens, 2, num_kv_heads, head_dim), torch.stack((keys, values), 1)[slots])
    assert_close(pool[slots], torch.stack((keys, values), 1)[slots])
    untouched = torch.ones(20, dtype=torch.bool).index_fill_(0, slots, False)
    assert pool[untouched].isnan().all()

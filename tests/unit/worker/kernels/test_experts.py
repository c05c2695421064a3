"""Mixture of experts against fp64."""

from __future__ import annotations

import pytest
import torch

from services.worker.kernels.expert_mlp import ExpertConfig, expert_mlp
from services.worker.kernels.expert_routing import assign_blocks, route
from services.worker.kernels.reference import experts as reference
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, POISON, assert_close


@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(0, 8, 2), (1, 8, 2), (5, 8, 2), (9, 60, 4), (3, 128, 8)])
@pytest.mark.parametrize("renormalize", [True, False])
def test_routing_takes_the_likeliest_experts(
    tokens: int, num_experts: int, top_k: int, renormalize: bool, device: torch.device
) -> None:
    logits = torch.randn(tokens, num_experts, device=device)
    weights, experts = route(logits, top_k, renormalize=renormalize)
    want_weights, want_experts = reference.route(logits.double(), top_k, renormalize)
    assert torch.equal(experts.long(), want_experts)
    assert_close(weights, want_weights)


def test_equal_router_logits_and_nan_stay_within_the_experts(device: torch.device) -> None:
    logits = torch.zeros(2, 12, device=device)
    logits[1] = float("nan")
    _, experts = route(logits, 3, renormalize=True)
    assert experts[0].tolist() == [0, 1, 2]
    assert ((experts >= 0) & (experts < 12)).all()


@pytest.mark.parametrize("one_program", [True, False])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "block_m"), [(1, 8, 2, 16), (130, 5, 3, 16), (60, 128, 2, 32)]
)
def test_blocks_hold_every_pair_once_under_its_expert(
    tokens: int,
    num_experts: int,
    top_k: int,
    block_m: int,
    one_program: bool,
    device: torch.device,
) -> None:
    experts = torch.randint(0, num_experts, (tokens, top_k), dtype=torch.int32, device=device)
    experts[:, 0] = 0  # a busy expert, others perhaps idle
    blocks = assign_blocks(experts, num_experts, block_m, one_program_pairs=10**9 if one_program else 0)
    used, flat = int(blocks.num_blocks), experts.flatten()
    tiles = blocks.pairs[: used * block_m].view(used, block_m)
    pairs = tiles[tiles < flat.numel()]
    assert sorted(pairs.tolist()) == list(range(flat.numel()))
    assert (tiles <= flat.numel()).all()
    assert used == sum(-(-int((flat == expert).sum()) // block_m) for expert in range(num_experts))
    for tile, expert in zip(tiles, blocks.block_experts.tolist(), strict=False):
        real = tile[tile < flat.numel()]
        assert real.numel() > 0
        assert (flat[real.long()] == expert).all()
        assert torch.equal(real, real.sort().values)


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "hidden", "intermediate"),
    [(0, 4, 2, 32, 32), (1, 4, 2, 32, 48), (21, 6, 3, 72, 40)],
)
def test_expert_mlp_equals_the_reference(
    tokens: int, num_experts: int, top_k: int, hidden: int, intermediate: int, dtype: torch.dtype, device: torch.device
) -> None:
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    gate_up = (torch.randn(num_experts, 2 * intermediate, hidden, device=device) * hidden**-0.5).to(dtype)
    down = (torch.randn(num_experts, hidden, intermediate, device=device) * intermediate**-0.5).to(dtype)
    weights, experts = route(torch.randn(tokens, num_experts, device=device), top_k, renormalize=True)
    config = ExpertConfig(block_m=16, block_n=32, block_k=32, num_warps=4, num_stages=2)
    out = torch.full_like(x, POISON)
    expert_mlp(x, gate_up, down, weights, experts, out, (config, config))
    assert_close(out, reference.expert_mlp(x.double(), gate_up, down, weights, experts))

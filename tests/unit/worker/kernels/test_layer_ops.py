"""The experts of a layer, as operators and as kernels, against fp64."""

from __future__ import annotations

import pytest
import torch

from services.worker.kernels.reference import experts as reference
from services.worker.models.experts import Experts
from services.worker.models.ops import LayerOps, TorchOps
from services.worker.models.triton_ops import TritonOps
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, POISON, assert_close

OPS = [TorchOps(), TritonOps()]


def make_experts(
    num_experts: int, hidden: int, intermediate: int, top_k: int, renormalize: bool, device: torch.device
) -> Experts:
    gate_up = torch.randn(num_experts, 2 * intermediate, hidden, device=device) * hidden**-0.5
    down = torch.randn(num_experts, hidden, intermediate, device=device) * intermediate**-0.5
    return Experts(gate_up, down, top_k, renormalize)


@pytest.mark.parametrize("ops", OPS, ids=["torch", "triton"])
@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "hidden", "intermediate", "renormalize"),
    [(1, 8, 2, 48, 33, True), (19, 7, 3, 40, 24, False), (5, 3, 3, 24, 17, True)],
)
def test_experts_equal_the_reference(
    ops: LayerOps,
    tokens: int,
    num_experts: int,
    top_k: int,
    hidden: int,
    intermediate: int,
    renormalize: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    made = make_experts(num_experts, hidden, intermediate, top_k, renormalize, device)
    experts = Experts(made.gate_up.to(dtype), made.down.to(dtype), top_k, renormalize)
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    logits = torch.randn(tokens, num_experts, device=device)
    weights, chosen = reference.route(logits.double(), top_k, renormalize)
    want = reference.expert_mlp(x.double(), experts.gate_up, experts.down, weights, chosen)
    assert_close(ops.run_experts(experts)(x, logits), want)


@pytest.mark.parametrize("ops", OPS, ids=["torch", "triton"])
def test_experts_that_no_token_goes_to_are_not_computed(ops: LayerOps, device: torch.device) -> None:
    experts = make_experts(5, 24, 16, 2, True, device)
    for weight in (experts.gate_up, experts.down):
        weight[[1, 4]] = POISON
    logits = torch.randn(9, 5, device=device)
    logits[:, [1, 4]] = -100.0
    assert torch.isfinite(ops.run_experts(experts)(torch.randn(9, 24, device=device), logits)).all()

"""The experts of a layer, as operators and as kernels, against fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from services.worker.kernels.reference import experts as reference
from services.worker.models.experts import Experts
from services.worker.models.ops import LayerOps, TorchOps
from services.worker.models.triton_ops import TritonOps
from services.worker.quantization.weights import Fp8Weight, IntWeight, Weight, fp8_of
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


def int4(width: int, depth: int) -> IntWeight:
    scales = ((torch.rand(width, depth // 16) + 0.1) / 64).half().float()
    return IntWeight(4, torch.randint(0, 16, (width, depth), dtype=torch.uint8), scales, -8 * scales)


def int4_in_another_order(width: int, depth: int) -> IntWeight:
    weight = int4(width, depth)
    return IntWeight(4, weight.codes, weight.scales, weight.offsets, torch.randperm(depth))


def int8(width: int, depth: int) -> IntWeight:
    scales = ((torch.rand(width, 1) + 0.1) / 500).half().float()
    return IntWeight(8, torch.randint(-128, 128, (width, depth), dtype=torch.int8), scales, None)


def int8_with_offsets(width: int, depth: int) -> IntWeight:
    weight = int8(width, depth)
    return IntWeight(8, weight.codes, weight.scales, torch.rand(width, 1) / 10)


def fp8_by_group(width: int, depth: int) -> Fp8Weight:
    return Fp8Weight(fp8_of(torch.randn(width, depth)).codes, (torch.rand(width, depth // 16) + 0.1) / 1000)


def fp8_by_output(width: int, depth: int) -> Fp8Weight:
    return fp8_of(torch.randn(width, depth) / 4)


def plain(width: int, depth: int) -> torch.Tensor:
    return torch.randn(width, depth) / 4


Make = Callable[[int, int], Weight]
PACKED: dict[str, list[Make]] = {
    "int4": [int4],
    "int4 in another order": [int4_in_another_order],
    "int4, some in another order": [int4, int4_in_another_order],
    "int8": [int8],
    "fp8 by group": [fp8_by_group],
    "fp8 by output": [fp8_by_output],
}
MIXED: dict[str, list[Make]] = {
    "some plain": [int4, plain],
    "of unlike groups": [fp8_by_group, fp8_by_output],
    "of unlike codes": [int8, fp8_by_output],
    "int8 with offsets": [int8_with_offsets],
}


def quantized_experts(makes: list[Make]) -> Experts:
    """Five experts on the CPU, in the given forms by turns."""
    gate_up, down = ([makes[e % len(makes)](*shape) for e in range(5)] for shape in ((64, 48), (48, 32)))
    return Experts(gate_up, down, 2, True)


@pytest.mark.parametrize("tokens", [1, 19])
@pytest.mark.parametrize("makes", (PACKED | MIXED).values(), ids=PACKED | MIXED)
def test_quantized_experts_compute_what_their_weights_mean(
    makes: list[Make], tokens: int, device: torch.device
) -> None:
    experts = quantized_experts(makes)
    x, logits = torch.randn(tokens, 48), torch.randn(tokens, 5)
    want = TorchOps().run_experts(experts)(x, logits)
    assert_close(TritonOps().run_experts(on(device, experts))(x.to(device), logits.to(device)), want, 1e-3)


@pytest.mark.parametrize("makes", (PACKED | MIXED).values(), ids=PACKED | MIXED)
def test_experts_of_one_form_stay_packed_and_others_are_reported_as_expanded(
    makes: list[Make], device: torch.device
) -> None:
    experts = on(device, quantized_experts(makes))
    TritonOps().run_experts(experts)
    assert experts.sizes.plain == 5 * 3 * 32 * 48 * 4
    if makes in PACKED.values():
        assert not experts.sizes.expanded
        assert experts.sizes.packed < experts.sizes.plain / 2
    else:
        assert experts.sizes.expanded
        assert experts.sizes.packed == experts.sizes.plain


def on(device: torch.device, experts: Experts) -> Experts:
    def move(weight: Weight) -> Weight:
        if isinstance(weight, torch.Tensor):
            return weight.to(device)
        fields = {name: getattr(weight, name) for name in weight.__dataclass_fields__}
        return type(weight)(**{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in fields.items()})

    gate_up, down = ([move(weight) for weight in stack] for stack in (experts.gate_up, experts.down))
    return Experts(gate_up, down, experts.top_k, experts.renormalize)

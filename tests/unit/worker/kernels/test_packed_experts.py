"""Experts with weights of 4 and 8 bits against fp64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from services.worker.kernels import packed_experts
from services.worker.kernels.expert_routing import assign_blocks, route
from services.worker.kernels.expert_tiles import ExpertCodes, ExpertTiles, stack_tiles
from services.worker.kernels.packed_experts import (
    PackedConfig,
    down_product,
    gated_product,
    packed_config,
    packed_expert_mlp,
)
from services.worker.kernels.reference import experts as reference
from services.worker.kernels.reference.elementwise import silu_and_mul
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, POISON, assert_close

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Form:
    """How the weights of a stack are packed."""

    kind: torch.dtype
    group: int | None
    """None: one scale an output."""
    ordered: bool = False

    @property
    def bits(self) -> int:
        return 4 if self.kind == torch.uint8 else 8


FORMS = {
    "int4": Form(torch.uint8, 32),
    "int4 in small groups": Form(torch.uint8, 16),
    "int4 by output": Form(torch.uint8, None),
    "int4 in another order": Form(torch.uint8, 32, ordered=True),
    "int8": Form(torch.int8, 32),
    "int8 by output": Form(torch.int8, None),
    "int8 in another order": Form(torch.int8, 16, ordered=True),
    "fp8 by output": Form(FP8, None),
    "fp8 by group": Form(FP8, 32),
}


def random_stack(
    form: Form, num_experts: int, width: int, depth: int, device: torch.device
) -> tuple[ExpertTiles, torch.Tensor]:
    """Tiles, and the weights [E, N, K] that they are, in fp64. Every expert's are of another size."""
    group = form.group or depth
    codes_of, weights = [], []
    for expert in range(num_experts):
        if form.kind == FP8:
            codes = torch.randn(width, depth, device=device).to(FP8)
        else:
            low, high = (0, 16) if form.bits == 4 else (-128, 128)
            codes = torch.randint(low, high, (width, depth), device=device).to(form.kind)
        scales = (torch.rand(width, depth // group, device=device) + 0.1) * 2.0 ** (expert % 5 - 2) * depth**-0.5
        scales = (scales / {4: 8, 8: 128}[form.bits] if form.kind != FP8 else scales).half().float()
        offsets = (-scales * torch.randint(4, 12, scales.shape, device=device)).half().float()
        weight = codes.double() * scales.double().repeat_interleave(group, 1)
        if form.bits == 4:
            weight += offsets.double().repeat_interleave(group, 1)
        order = torch.randperm(depth, device=device) if form.ordered else None
        if order is not None:
            weight = torch.empty_like(weight).index_copy_(1, order, weight)
        codes_of.append(ExpertCodes(codes, scales, offsets if form.bits == 4 else None, order))
        weights.append(weight)
    return stack_tiles(form.bits, codes_of), torch.stack(weights)


CONFIGS = [PackedConfig(8, 16, 32, 4, 2, False), PackedConfig(16, 32, 16, 4, 2, True)]


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize("config", CONFIGS, ids=["scaled after", "scaled before"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_packed_experts_compute_what_their_weights_mean(
    form: Form, config: PackedConfig, dtype: torch.dtype, device: torch.device
) -> None:
    """Experts without tokens and with one; sides that no tile divides; a rank's odd share of a group."""
    tokens, num_experts, top_k, hidden, intermediate = 9, 7, 2, 96, 64
    gate_up, gate_up_weight = random_stack(form, num_experts, 2 * intermediate, hidden, device)
    down, down_weight = random_stack(form, num_experts, hidden, intermediate, device)
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    logits = torch.randn(tokens, num_experts, device=device)
    logits[:, 3] = -100.0
    weights, experts = route(logits, top_k, renormalize=True)
    out = packed_expert_mlp(x, gate_up, down, weights, experts, (config, config))
    assert_close(out, reference.expert_mlp(x.double(), gate_up_weight, down_weight, weights, experts))


@pytest.mark.parametrize("tokens", [0, 1, 3, 21, 70])
@pytest.mark.parametrize("form", [FORMS["int4"], FORMS["fp8 by output"]], ids=["int4", "fp8"])
def test_any_number_of_tokens_finds_its_tiles(form: Form, tokens: int, device: torch.device) -> None:
    gate_up, gate_up_weight = random_stack(form, 3, 64, 64, device)
    down, down_weight = random_stack(form, 3, 64, 32, device)
    x = torch.randn(tokens, 64, device=device)
    weights, experts = route(torch.randn(tokens, 3, device=device), 2, renormalize=False)
    out = packed_expert_mlp(x, gate_up, down, weights, experts)
    assert_close(out, reference.expert_mlp(x.double(), gate_up_weight, down_weight, weights, experts))

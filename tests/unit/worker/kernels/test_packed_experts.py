"""Experts with weights of 4 and 8 bits against fp64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from services.worker.kernels import packed_experts
from services.worker.kernels.expert_routing import assign_blocks, route
from services.worker.kernels.expert_tiles import ExpertCodes, ExpertTiles, stack_tiles
from services.worker.kernels.fp8_rows import fp8_rows
from services.worker.kernels.packed_config import PackedConfig
from services.worker.kernels.packed_experts import down_product, gated_product, packed_expert_mlp
from services.worker.kernels.reference import experts as reference
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, POISON, assert_close

FP8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel writes is seen in the result."""
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> torch.Tensor:
        made: torch.Tensor = empty(*args, **options)
        return made.fill_(POISON if made.is_floating_point() else 1 << 20)

    monkeypatch.setattr(torch, "empty", poisoned)


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


CODES, STAGED = PackedConfig(8, 16, 32, 4, 2, "codes"), PackedConfig(16, 32, 16, 4, 2, "staged")


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize(
    ("form", "config"),
    [pytest.param(form, CODES, id=name) for name, form in FORMS.items()]
    + [pytest.param(form, STAGED, id=f"{name}, staged") for name, form in FORMS.items()],
)
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


@pytest.mark.parametrize("form", [FORMS["int4"], FORMS["int8"]], ids=["int4", "int8"])
def test_split_inputs_add_up(form: Form, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_experts, "sm_count", lambda device: 10_000)
    gate_up, gate_up_weight = random_stack(form, 3, 576, 32, device)
    down, down_weight = random_stack(form, 3, 32, 288, device)
    x = torch.randn(2, 32, device=device)
    weights, experts = route(torch.randn(2, 3, device=device), 2, renormalize=False)
    out = packed_expert_mlp(x, gate_up, down, weights, experts)
    assert_close(out, reference.expert_mlp(x.double(), gate_up_weight, down_weight, weights, experts))
    parts = down_product(torch.randn(4, 288, device=device), down, assign_blocks(experts, 3, 8), CODES)
    assert len(parts) == 2


@pytest.mark.parametrize("form", [FORMS["int4"], FORMS["int8 by output"]], ids=["int4", "int8"])
def test_an_odd_number_of_outputs_is_kept(form: Form, device: torch.device) -> None:
    down, weight = random_stack(form, 3, 33, 64, device)
    inner = torch.randn(5, 64, device=device)
    experts = torch.tensor([[2], [0], [0], [2], [2]], dtype=torch.int32, device=device)
    (out,) = down_product(inner, down, assign_blocks(experts, 3, CODES.block_m), CODES)
    assert_close(out, torch.einsum("pk,pnk->pn", inner.double(), weight[experts.flatten().long()]))


def test_activations_of_8_bits_are_multiplied_as_they_are_rounded(device: torch.device) -> None:
    config = PackedConfig(16, 32, 32, 4, 2, "rounded")
    gate_up, gate_up_weight = random_stack(FORMS["fp8 by output"], 3, 64, 96, device)
    down, down_weight = random_stack(FORMS["fp8 by output"], 3, 72, 64, device)
    x, inner = (torch.randn(shape, device=device).to(torch.float16) * 30 for shape in ((9, 96), (18, 64)))
    experts = torch.randint(0, 3, (9, 2), device=device, dtype=torch.int32)
    blocks = assign_blocks(experts, 3, config.block_m)
    of_pair = experts.flatten().long()
    gate, up = torch.einsum("pk,pnk->pn", _rounded(x).repeat_interleave(2, 0), gate_up_weight[of_pair]).chunk(2, dim=1)
    assert_close(gated_product(x, gate_up, blocks, config, 2), torch.nn.functional.silu(gate) * up)
    (out,) = down_product(inner, down, blocks, config)
    assert_close(out, torch.einsum("pk,pnk->pn", _rounded(inner), down_weight[of_pair]))


def _rounded(x: torch.Tensor) -> torch.Tensor:
    rows = fp8_rows(x)
    return rows.codes.double() * rows.scales.double()

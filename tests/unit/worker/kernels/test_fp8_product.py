"""Products of 8-bit floats against fp64 ones of the same 8-bit floats."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import triton

from services.worker.kernels import overlap
from services.worker.kernels.arrivals import arrival_counters
from services.worker.kernels.fp8_product import MOST_TOKENS, Fp8Config, fp8_config, fp8_product
from services.worker.kernels.fp8_rows import fp8_rows
from tests.unit.worker.kernels.closeness import POISON, TOLERANCE, assert_close

SMALL = Fp8Config(block_m=16, block_p=16, block_k=32, num_warps=4, num_stages=2, splits=1)
LLAMA_8B = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel writes is seen in the result."""
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> torch.Tensor:
        made: torch.Tensor = empty(*args, **options)
        return made.fill_(POISON)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(
    ("tokens", "width", "depth"),
    [(1, 16, 32), (17, 48, 96), (19, 80, 144), (33, 16, 256), (5, 112, 16)],
)
def test_a_product_is_that_of_the_rounded_operands(
    tokens: int, width: int, depth: int, splits: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Tokens, outputs and inputs that no tile divides; splits that have no inputs left."""
    x, codes, scales, want = operands(tokens, width, depth, device)
    bias, counters = torch.randn(width, device=device).to(dtype), arrival_counters(device)
    for some_bias in (bias, None):
        out = fp8_product(*x, codes, scales, some_bias, counters, dtype, dataclasses.replace(SMALL, splits=splits))
        assert out.dtype == dtype
        assert_close(out, want + (0 if some_bias is None else bias.double()), accuracy(dtype, device))
        assert not counters.any()


@pytest.mark.parametrize("tokens", [0, 17, 33, 65, 129])
def test_any_number_of_tokens_finds_its_tile(tokens: int, device: torch.device) -> None:
    x, codes, scales, want = operands(tokens, 144, 272, device)
    out = fp8_product(*x, codes, scales, None, arrival_counters(device), torch.float32)
    assert_close(out, want, accuracy(torch.float32, device))


@pytest.mark.parametrize("tokens", [17, 32, 33, 64, 100, 128, 200, MOST_TOKENS])
@pytest.mark.parametrize(("width", "depth"), [*LLAMA_8B, (576, 1536), (1536, 512)])
def test_the_programs_of_a_product_fit_the_card_twice_over_where_inputs_are_split(
    width: int, depth: int, tokens: int
) -> None:
    config = fp8_config(tokens, width, depth, 132)
    assert (config.block_m + config.block_p) * config.block_k * config.num_stages <= 96 << 10
    programs = triton.cdiv(tokens, config.block_m) * triton.cdiv(width, config.block_p)
    assert config.splits == 1 or programs * config.splits <= 2 * 132


def test_a_product_may_begin_early_where_the_card_can(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """The interpreter knows no such instruction: there it must be compiled away."""
    monkeypatch.setattr(overlap, "_early", True)
    x, codes, scales, want = operands(17, 32, 64, device)
    config = dataclasses.replace(SMALL, splits=2)
    out = fp8_product(*x, codes, scales, None, arrival_counters(device), torch.float32, config)
    assert_close(out, want, accuracy(torch.float32, device))


def operands(
    tokens: int, width: int, depth: int, device: torch.device
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations and their scales; codes; scales; the product in fp64. Scales differ much from row to row."""
    x, weight = (
        torch.randn(rows, depth, device=device) * 2.0 ** torch.randint(-3, 4, (rows, 1), device=device)
        for rows in (tokens, width)
    )
    inputs, outputs = fp8_rows(x), fp8_rows(weight)
    want = (inputs.codes.double() * inputs.scales.double()) @ (outputs.codes.double() * outputs.scales.double()).T
    return (inputs.codes, inputs.scales), outputs.codes, outputs.scales.T.contiguous(), want


def accuracy(dtype: torch.dtype, device: torch.device) -> float:
    """Tensor cores keep fewer bits than float32 of the sums of 8-bit floats."""
    return TOLERANCE[dtype] if device.type == "cpu" else max(TOLERANCE[dtype], 1e-3)

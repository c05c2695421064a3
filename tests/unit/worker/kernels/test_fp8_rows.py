"""Activations as 8-bit floats: from a tensor, and at once from the kernels that would have written the tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from services.worker.kernels import fp8_rows as fp8_rows_module
from services.worker.kernels.fp8_rows import FP8, fp8_rows
from services.worker.kernels.rms_norm import add_rms_norm, rms_norm
from services.worker.kernels.silu_and_mul import silu_and_mul
from services.worker.models import triton_ops
from services.worker.models.triton_ops import TritonOps
from services.worker.quantization.rounded import Activations, Fp8Rows, unfilled_rows

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0, 64), (1, 1), (3, 100), (5, 1024), (2, 1500)]
"""Tokens and values of each; of the last, the gated activation has several programs where it does not round."""
Launch = Callable[[Activations], None]


class Always:
    """A reader that rounds."""

    def rounds(self, tokens: int) -> bool:
        return True


@pytest.mark.parametrize("block", [64, 256])
def test_a_token_becomes_8_bit_floats_by_its_largest_value(
    block: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of 8 bits times a power of two, so that no rounding hides a wrong scale; in several parts and in one."""
    monkeypatch.setattr(fp8_rows_module, "WIDEST", block)
    values = (torch.randn(4, 130, device=device) * 50).to(FP8).float()
    values[:, 107] = 448.0
    factors = torch.tensor([[2.0**-20], [1.0], [32.0], [0.0]], device=device)
    rows = fp8_rows(values * factors)
    assert torch.equal(rows.scales[:3], factors[:3])
    assert torch.equal(rows.codes[:3].float(), values[:3])
    assert not rows.codes[3].float().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_a_norm_rounds_as_a_second_launch_would(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, weight = rows(tokens, width, dtype, device), torch.randn(width, device=device).to(dtype)
    assert_rounded_alike(lambda out: rms_norm(x, weight, 1e-6, out), x, width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_a_norm_of_a_sum_rounds_as_a_second_launch_would_and_keeps_the_sum(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, before = (rows(tokens, width, dtype, device) for _ in range(2))
    weight = torch.randn(width, device=device).to(dtype)
    sums = []

    def launch(out: Activations) -> None:
        sums.append(before.clone())
        add_rms_norm(x, sums[-1], weight, 1e-6, out)

    assert_rounded_alike(launch, x, width)
    assert torch.equal(*sums)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_the_gated_activation_rounds_as_a_second_launch_would(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    gate_up = rows(tokens, 2 * width, dtype, device)
    assert_rounded_alike(lambda out: silu_and_mul(gate_up, out), gate_up, width)


@pytest.mark.parametrize("width", [128, 100])
def test_values_that_are_not_finite_are_rounded_as_by_a_second_launch(width: int, device: torch.device) -> None:
    """In a row alone, among others, and nothing but them; where a program has lanes to spare, and where it has none."""
    x = torch.randn(5, 2 * width, device=device)
    x[0, 7], x[1, 7], x[2, [3, 7]] = float("nan"), float("inf"), -float("inf")
    x[3], x[4] = float("nan"), 0.0
    weight = torch.ones(width, device=device)
    assert_rounded_alike(lambda out: rms_norm(x[:, :width], weight, 1e-6, out), x, width)
    assert_rounded_alike(lambda out: silu_and_mul(x, out), x, width)


def test_a_row_that_no_program_can_keep_is_left_to_its_reader(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate_up = torch.randn(2, 2 * 65, device=device)
    assert isinstance(TritonOps().silu_and_mul(gate_up, Always()), Fp8Rows)
    monkeypatch.setattr(triton_ops, "WIDEST", 64)
    assert isinstance(TritonOps().silu_and_mul(gate_up, Always()), torch.Tensor)


def rows(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Part of a wider tensor; some tokens much larger than others."""
    sizes = 2.0 ** torch.randint(-3, 4, (tokens, 1), device=device)
    return (torch.randn(tokens, width + 8, device=device) * sizes).to(dtype)[:, :width]


def assert_rounded_alike(launch: Launch, x: torch.Tensor, width: int) -> None:
    """Bit for bit, whether one launch or two make rows of `width` values from x [T, any]."""
    plain, got = x.new_empty((len(x), width)), unfilled_rows(x, width)
    launch(plain)
    launch(got)
    want = fp8_rows(plain)
    assert got.dtype == want.dtype == x.dtype
    assert torch.equal(got.scales, want.scales)
    assert torch.equal(got.codes.view(torch.uint8), want.codes.view(torch.uint8))

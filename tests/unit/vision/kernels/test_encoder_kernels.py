"""Fused steps of encoders against the operators that they stand for, in fp64."""

from __future__ import annotations

import pytest
import torch

from services.vision.kernels.quick_gelu import BLOCK, quick_gelu_
from services.vision.kernels.rotate_heads import rotate_heads_


@pytest.mark.parametrize(("heads", "dim"), [(16, 80), (3, 64), (16, 72), (1, 8)])
@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_queries_and_keys_turn_and_values_stay(
    heads: int, dim: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    qkv = torch.randn(tokens, 3, heads, dim, device=device).to(dtype)
    angle = torch.rand(tokens, dim // 2, device=device) * 100
    before = qkv.double()
    cos, sin = angle.double().cos()[:, None, None], angle.double().sin()[:, None, None]
    first, second = before[:, :2].chunk(2, dim=3)
    rotate_heads_(qkv, angle.cos(), angle.sin())
    want = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=3)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(qkv[:, :2].double(), want, rtol=tolerance, atol=tolerance)
    assert torch.equal(qkv[:, 2].double(), before[:, 2])


@pytest.mark.parametrize("count", [0, 1, BLOCK, BLOCK + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_quick_gelu_is_what_its_name_says(count: int, dtype: torch.dtype, device: torch.device) -> None:
    x = (torch.randn(count, device=device) * 6).to(dtype)
    want = x.double() * torch.sigmoid(1.702 * x.double())
    out = quick_gelu_(x)
    assert out is x
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(out.double(), want, rtol=tolerance, atol=tolerance)

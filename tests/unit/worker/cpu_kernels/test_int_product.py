"""Products with weights of 4 and 8 bits on CPUs, few tokens and many, against fp64."""

from __future__ import annotations

import pytest
import torch

from services.worker.models import numba_product
from services.worker.models.numba_product import NumbaIntProduct
from services.worker.quantization.weights import IntWeight


@pytest.mark.parametrize("tile", [1 << 20, 1 << 9])
@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 16, 17, 40])
@pytest.mark.parametrize(
    ("bits", "width", "depth", "group", "has_offsets"),
    [
        (4, 64, 96, 32, True),
        (4, 7, 64, 16, True),
        (4, 34, 40, 40, True),
        (4, 1, 128, 128, True),
        (8, 70, 96, 32, False),
        (8, 5, 24, 24, False),
        (8, 3, 64, 64, False),
        (8, 64, 96, 32, True),
        (8, 5, 24, 24, True),
    ],
)
def test_products_are_those_of_the_weights_that_are_meant(
    bits: int, width: int, depth: int, group: int, tokens: int, tile: int, has_offsets: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(numba_product, "TILE_WEIGHTS", tile)
    kind, low, high = (torch.uint8, 0, 16) if bits == 4 else (torch.int8, -128, 128)
    scales, offsets = (torch.randn(width, depth // group) for _ in range(2))
    weight = IntWeight(
        bits, torch.randint(low, high, (width, depth)).to(kind), scales, offsets if has_offsets else None,
        torch.randperm(depth) if width == 64 else None,
    )  # fmt: skip
    want, product = weight.expand().double(), NumbaIntProduct(weight)
    x, bias = torch.randn(tokens, depth), torch.randn(width)
    out = x.double() @ want.T
    torch.testing.assert_close(product(x, None).double(), out, rtol=1e-5, atol=1e-5 * float(out.abs().max()))
    torch.testing.assert_close(product(x, bias).double(), out + bias, rtol=1e-5, atol=1e-5 * float(out.abs().max()))

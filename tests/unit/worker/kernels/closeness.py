"""How tests compare a kernel with its fp64 reference."""

from __future__ import annotations

import pytest
import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
POISON = float("nan")

BF16_ON_GPU = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a GPU: Triton's interpreter multiplies the bits of bf16"
    ),
)
MATMUL_DTYPES = [torch.float32, torch.float16, BF16_ON_GPU]
"""For kernels with tl.dot."""


def assert_close(out: torch.Tensor, reference: torch.Tensor, tolerance: float | None = None) -> None:
    """Relative error in the norm of the whole tensor, and no element far off on its own; NaN never passes."""
    limit = TOLERANCE[out.dtype] if tolerance is None else tolerance
    got, want = out.double().cpu(), reference.double().cpu()
    assert torch.isfinite(got).all(), "an element was not written, or is not finite"
    size = want.norm().clamp_min(1e-12)
    assert (got - want).norm() <= limit * size, f"relative error {float((got - want).norm() / size):.2e} > {limit}"
    if got.numel():
        worst = (got - want).abs().max()
        assert worst <= 8 * limit * want.abs().max().clamp_min(1e-12), f"largest error {float(worst):.2e}"

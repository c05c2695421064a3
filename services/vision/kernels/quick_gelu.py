"""x * sigmoid(1.702 x) in one pass. Called by the MLPs of CLIP and Qwen2-VL."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048


@triton.jit
def _quick_gelu_kernel(x: tl.tensor, count: tl.int64, BLOCK: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    value = value / (1.0 + tl.exp(-1.702 * value))
    tl.store(x + at, value.to(x.dtype.element_ty), mask=at < count)


def quick_gelu_(x: torch.Tensor) -> torch.Tensor:
    """In place, computed in fp32. x: contiguous."""
    assert x.is_contiguous()
    if x.numel():
        _quick_gelu_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, x.numel(), BLOCK=BLOCK, num_warps=8)
    return x

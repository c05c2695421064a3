"""Products with plain weights.

On CPU the weights are reordered into oneDNN's blocked layout after loading: measured 1.4 to 2.3 times faster than
`F.linear` for 4 to 64 tokens, because a plain product reorders (or strides over) the whole weight every time.
Made by `ops.py`; knows nothing of checkpoints or ranks.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_MIN_ROWS = 4
"""oneDNN computes 4 rows faster than 1 to 3 (its one-row kernels lose a third of the memory bandwidth)."""


class DenseProduct:
    """The weight is this object's own from now on, and opaque."""

    def __init__(self, weight: Tensor) -> None:
        """weight: [out, in], possibly a part of a larger tensor"""
        self.nbytes = weight.nbytes
        self._packed = weight.device.type == "cpu" and can_pack(weight.dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, 64) if self._packed else weight

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [T, in], bias: [out] -> [T, out]"""
        if self._packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, "none", [], "")
            return y
        return F.linear(x, self._weight, bias)


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch can reorder weights of `dtype` and then computes the same product.

    The operators are private to torch: a build without oneDNN lacks them, and a machine may refuse a dtype.
    """
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator).to(dtype) for shape in ((8, 64), (32, 64)))
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(w, 64)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(y.float(), F.linear(x, w).float(), rtol=2e-2, atol=2e-1 if dtype.itemsize < 4 else 1e-4)


def min_rows(device: torch.device, dtype: torch.dtype) -> int:
    """Fewest tokens worth computing at once with plain weights: a smaller forward is padded to this many."""
    return PACKED_MIN_ROWS if device.type == "cpu" and can_pack(dtype) else 1

"""What the offsets of weights of 8 bits add to a product: the kernels for 8 bits know scales alone.

A group's offset multiplies the sum of the group's inputs, so that all of them are one small product beside the large
one. Called by `numba_product.py` and `triton_product.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_offsets(out: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """Add the offsets' part of x W^T to `out`, and return it.

    Args:
        out: [T, N], changed in place.
        x: [T, K], inputs in the order of the weight's columns.
        offsets: [N, G] fp32 of G groups of neighbouring inputs.
    """
    sums = x.reshape(len(x), offsets.shape[1], -1).sum(2, dtype=torch.float32)  # [T, G]
    return out.add_(sums @ offsets.T)

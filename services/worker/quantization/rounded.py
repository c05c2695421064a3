"""The forms that activations take between the operations of a layer: plain, or rounded to 8-bit floats.

Who reads a result chooses its form, and who computes it may write it so at once. Knows no kernel. Model files hand both
on without looking; `kernels/fp8_rows.py` and the kernels that call it make rounded rows, `models/triton_product.py`
multiplies them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.worker.quantization.weights import FP8


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Tokens in 8-bit floats, each with a scale of its own: x = code * scale."""

    codes: Tensor
    """[T, K] e4m3, contiguous"""
    scales: Tensor
    """[T, 1] fp32"""
    dtype: torch.dtype
    """Of the values before they were rounded, and of products with them."""

    def __len__(self) -> int:
        return len(self.codes)


def unfilled_rows(x: Tensor, width: int) -> Fp8Rows:
    """Memory for `width` values of each token of x [T, any], in its dtype before they are rounded."""
    codes = torch.empty((len(x), width), dtype=FP8, device=x.device)
    return Fp8Rows(codes, torch.empty((len(x), 1), dtype=torch.float32, device=x.device), x.dtype)


Activations = Tensor | Fp8Rows
"""[T, K]"""


class Reader(Protocol):
    """What an operation's result is given to."""

    def rounds(self, tokens: int) -> bool:
        """Whether it would round every row of so many tokens itself, and takes `Fp8Rows` as well."""

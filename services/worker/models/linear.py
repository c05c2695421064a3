"""Products of a model: one or several of the checkpoint's, side by side, whatever form their weights have.

A `Linear` knows where its parts are loaded to and, once packed, what computes with them (`ops.LayerOps.product`); it
knows no format and no kernel. Made by `Place`, called by the model files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from services.worker.quantization.rounded import Activations, Fp8Rows, Reader
from services.worker.quantization.stored import Part, Stored
from services.worker.quantization.weights import Weight, beside
from shared.checkpoint.target import Target


class Product(Protocol):
    """x W^T + b with a weight that is laid out for the machine it runs on."""

    @property
    def nbytes(self) -> int:
        """What the weight takes."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [T, in], bias: [out] -> [T, out]"""


@runtime_checkable
class RoundingProduct(Product, Reader, Protocol):
    """One that rounds activations of many tokens before it multiplies them."""

    def of_rounded(self, x: Fp8Rows, bias: Tensor | None) -> Tensor:
        """As when called with what was rounded to `x`."""


class MakeProduct(Protocol):
    """`LayerOps.product`"""

    def __call__(self, weight: Weight, dtype: torch.dtype) -> Product: ...


class MakeGatedProduct(Protocol):
    """`LayerOps.gated_product`"""

    def __call__(self, weight: Weight, dtype: torch.dtype) -> Product | None: ...


@dataclass(slots=True)
class WeightBytes:
    """What a model's products take, as they are and as they would with plain weights. Filled while they are packed."""

    packed: int = 0
    plain: int = 0
    expanded: bool = False
    """Some quantized weights became plain ones, as no kernel here computes with them."""

    def add(self, weight: Weight, packed: int, dtype: torch.dtype) -> None:
        """A product that takes `packed` bytes for `weight`, and computes in `dtype`."""
        plain = weight.shape.numel() * dtype.itemsize
        self.packed += packed
        self.plain += plain
        self.expanded |= packed >= plain and not isinstance(weight, Tensor)


class Linear:
    """y = x W^T + b. Fill the targets, call `pack` once, then call it."""

    def __init__(
        self,
        parts: Sequence[Part],
        stored: Sequence[Stored],
        bias: Tensor | None,
        make: MakeProduct,
        dtype: torch.dtype,
        sizes: WeightBytes,
        fused: Tensor | None = None,
        unbiased: Collection[Part] = (),
    ) -> None:
        """
        Args:
            parts, stored: what is beside each other, in the order of outputs; names are local ones in the targets.
            bias: [out], of all parts.
            unbiased: parts whose bias is not loaded.
            dtype: of activations.
            fused: the plain weight of all parts, if they have one.
        """
        self.bias = bias
        self._parts, self._stored, self._fused, self._unbiased = list(parts), list(stored), fused, unbiased
        self._make, self._dtype, self._sizes = make, dtype, sizes
        self._products: list[tuple[Product, slice]] = []
        self._rounding: RoundingProduct | None = None

    def targets(self) -> dict[str, Target]:
        """The parts' tensors by their local names."""
        out: dict[str, Target] = {}
        row = 0
        for part, stored in zip(self._parts, self._stored, strict=True):
            name = part.name.rsplit(".", 1)[-1]
            out |= {f"{name}.{tensor}": target for tensor, target in stored.targets.items()}
            if self.bias is not None and part not in self._unbiased:
                out[f"{name}.bias"] = Target(self.bias[row : row + part.width], (part.out_features,), (part.rows,))
            row += part.width
        return out

    def pack(self, gated: MakeGatedProduct | None = None) -> bool:
        """Bring the weights into their final layout. Call once, after loading.

        Args:
            gated: where the parts are gate and up, what may make of them a product that returns silu(gate) * up.

        Returns:
            Whether it did.
        """
        weights = [self._fused] if self._fused is not None else beside(stored.read() for stored in self._stored)
        self._stored, self._fused = [], None
        fused = gated(weights[0], self._dtype) if gated is not None and len(weights) == 1 else None
        row = 0
        for weight in weights:
            width = weight.shape[0]
            product = fused or self._make(weight, self._dtype)
            self._products.append((product, slice(row, row + width)))
            self._sizes.add(weight, product.nbytes, self._dtype)
            row += width
        only = self._products[0][0] if len(self._products) == 1 else None
        self._rounding = only if isinstance(only, RoundingProduct) else None
        return fused is not None

    def rounds(self, tokens: int) -> bool:
        """As a `Reader` says."""
        return self._rounding is not None and self._rounding.rounds(tokens)

    def __call__(self, x: Activations) -> Tensor:
        """x: [T, in] -> [T, out], or half of that where `pack` said so"""
        if isinstance(x, Fp8Rows):
            assert self._rounding is not None
            return self._rounding.of_rounded(x, self.bias)
        if len(self._products) == 1:
            return self._products[0][0](x, self.bias)
        bias = self.bias
        return torch.cat([run(x, None if bias is None else bias[rows]) for run, rows in self._products], dim=1)


def plain(part: Part, into: Tensor) -> Stored:
    """A part with a plain weight, which is loaded to `into` [rows, columns]."""
    target = Target(into, (part.out_features, part.in_features), (part.rows, part.columns))
    return Stored({"weight": target}, lambda: into)

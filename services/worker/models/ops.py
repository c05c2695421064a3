"""Operations of a layer that devices do differently: the seam between model files and kernels.

`TorchOps` is the reference; `TritonOps` (GPU) and `NumbaOps` (CPU) fuse what would otherwise be read and written twice.
Rotary embedding and the KV write belong to the attention backend (`attention/`), which knows where the pool is.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from services.worker.models.dense_product import DenseProduct
from services.worker.models.experts import Experts, GroupedExperts, RunExperts
from services.worker.models.linear import Product
from services.worker.quantization.rounded import Activations, Reader
from services.worker.quantization.weights import Weight, expanded


class LayerOps(Protocol):
    """Stateless. Called by model files."""

    def add_rms_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, reader: Reader
    ) -> Activations:
        """Add `delta` [T, N] to `residual` [T, N] in place and return the norm of the sum; `delta` may be used up.

        The result is for `reader`: it may be rounded already if that would round it.
        """

    def silu_and_mul(self, gate_up: Tensor, reader: Reader) -> Activations:
        """silu(gate) * up of [T, 2 * I], gate first: [T, I], for `reader` as above."""

    def product(self, weight: Weight, dtype: torch.dtype) -> Product:
        """What computes with `weight`, which is loaded and becomes its own, and activations of `dtype`."""

    def gated_product(self, weight: Weight, dtype: torch.dtype) -> Product | None:
        """What computes silu(gate) * up [T, I] with `weight` [2 * I, in], gate first, in one; None: nothing here does,
        and the weight is untouched."""

    def run_experts(self, experts: Experts) -> RunExperts:
        """What computes `experts`, which are loaded and become its own: it may keep them in another layout."""


class TorchOps:
    """PyTorch operators, any device."""

    def add_rms_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, reader: Reader
    ) -> Tensor:
        if delta is not None:
            residual.add_(delta)
        return F.rms_norm(residual, weight.shape, weight, eps)

    def silu_and_mul(self, gate_up: Tensor, reader: Reader) -> Tensor:
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate).mul_(up)

    def product(self, weight: Weight, dtype: torch.dtype) -> Product:
        """Quantized weights are expanded."""
        return DenseProduct(expanded(weight, dtype))

    def gated_product(self, weight: Weight, dtype: torch.dtype) -> Product | None:
        return None

    def run_experts(self, experts: Experts) -> RunExperts:
        return GroupedExperts(experts, self.product)


def layer_ops(backend: str) -> LayerOps:
    """The operations that go with an attention backend: with `torch` no kernel of ours runs, so it stays the oracle."""
    if backend == "torch":
        return TorchOps()
    if backend == "numba":
        from services.worker.models.numba_ops import NumbaOps

        return NumbaOps()
    from services.worker.models.triton_ops import TritonOps

    return TritonOps()

"""Layer operations as CPU kernels. Imported only where numba is there (`ops.layer_ops`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from services.worker.cpu_kernels import rms_norm
from services.worker.cpu_kernels.silu_and_mul import silu_and_mul
from services.worker.models.dense_product import DenseProduct
from services.worker.models.experts import Experts, GroupedExperts, RunExperts
from services.worker.models.linear import Product
from services.worker.models.numba_product import NumbaIntProduct
from services.worker.quantization.rounded import Reader
from services.worker.quantization.weights import IntWeight, Weight, expanded


class NumbaOps:
    """One pass over the data each; experts are as with `TorchOps`."""

    def add_rms_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, reader: Reader
    ) -> Tensor:
        if delta is None:
            out = residual.new_empty(residual.shape)
            rms_norm.rms_norm(residual.numpy(), weight.numpy(), np.float32(eps), out.numpy())
            return out
        rms_norm.add_rms_norm(residual.numpy(), delta.numpy(), weight.numpy(), np.float32(eps))
        return delta

    def silu_and_mul(self, gate_up: Tensor, reader: Reader) -> Tensor:
        out = gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
        silu_and_mul(gate_up.numpy(), out.numpy())
        return out

    def product(self, weight: Weight, dtype: torch.dtype) -> Product:
        """Whole numbers stay what they are; 8-bit floats, which no instruction here multiplies, are expanded."""
        return NumbaIntProduct(weight) if isinstance(weight, IntWeight) else DenseProduct(expanded(weight, dtype))

    def gated_product(self, weight: Weight, dtype: torch.dtype) -> Product | None:
        return None

    def run_experts(self, experts: Experts) -> RunExperts:
        return GroupedExperts(experts, self.product)

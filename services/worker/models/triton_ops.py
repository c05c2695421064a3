"""Layer operations as fused Triton kernels. Imported only where Triton is there (`ops.layer_ops`)."""

from __future__ import annotations

import torch
from torch import Tensor

from services.worker.kernels.rms_norm import add_rms_norm, rms_norm
from services.worker.kernels.silu_and_mul import silu_and_mul
from services.worker.models.dense_product import DenseProduct
from services.worker.models.experts import Experts, RunExperts
from services.worker.models.linear import Product
from services.worker.models.triton_experts import TritonExperts
from services.worker.models.triton_product import TritonFp8Product, TritonIntProduct, fits_scaled_product
from services.worker.quantization.weights import Fp8Weight, IntWeight, Weight


class TritonOps:
    """No operation waits for the device, and what is launched depends on shapes alone: a CUDA graph may hold them."""

    def add_rms_norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        if delta is None:
            return rms_norm(residual, weight, eps)
        add_rms_norm(delta, residual, weight, eps)
        return delta

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return silu_and_mul(gate_up)

    def product(self, weight: Weight, dtype: torch.dtype) -> Product:
        if isinstance(weight, Tensor):
            return DenseProduct(weight)
        if isinstance(weight, Fp8Weight) and fits_scaled_product(weight, dtype):
            return TritonFp8Product(weight)
        return TritonIntProduct(weight)

    def gated_product(self, weight: Weight, dtype: torch.dtype) -> Product | None:
        return TritonIntProduct(weight, gated=True) if isinstance(weight, IntWeight) and weight.bits == 4 else None

    def run_experts(self, experts: Experts) -> RunExperts:
        return TritonExperts(experts)

"""Layer operations as fused Triton kernels. Imported only where Triton is there (`ops.layer_ops`)."""

from __future__ import annotations

import torch
from torch import Tensor

from services.worker.kernels.fp8_rows import WIDEST
from services.worker.kernels.rms_norm import add_rms_norm, rms_norm
from services.worker.kernels.silu_and_mul import silu_and_mul
from services.worker.models.dense_product import DenseProduct
from services.worker.models.experts import Experts, RunExperts
from services.worker.models.linear import Product
from services.worker.models.triton_experts import TritonExperts
from services.worker.models.triton_product import TritonFp8Product, TritonIntProduct, fits_scaled_product
from services.worker.quantization.rounded import Activations, Reader, unfilled_rows
from services.worker.quantization.weights import Fp8Weight, IntWeight, Weight


class TritonOps:
    """No operation waits for the device, and what is launched depends on shapes alone: a CUDA graph may hold them."""

    def add_rms_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, reader: Reader
    ) -> Activations:
        rows = unfilled_rows(residual, residual.shape[1]) if reader.rounds(len(residual)) else None
        if delta is None:
            out = torch.empty_like(residual) if rows is None else rows
            rms_norm(residual, weight, eps, out)
        else:
            out = delta if rows is None else rows
            add_rms_norm(delta, residual, weight, eps, out)
        return out

    def silu_and_mul(self, gate_up: Tensor, reader: Reader) -> Activations:
        tokens, width = len(gate_up), gate_up.shape[1] // 2
        out: Activations
        if width <= WIDEST and reader.rounds(tokens):
            out = unfilled_rows(gate_up, width)
        else:
            out = gate_up.new_empty((tokens, width))
        silu_and_mul(gate_up, out)
        return out

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

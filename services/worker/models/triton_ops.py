"""Layer operations as fused Triton kernels. Imported only where Triton is there (`ops.layer_ops`)."""

from __future__ import annotations

from torch import Tensor

from services.worker.kernels.expert_mlp import expert_mlp
from services.worker.kernels.expert_routing import route
from services.worker.kernels.rms_norm import add_rms_norm, rms_norm
from services.worker.kernels.silu_and_mul import silu_and_mul
from services.worker.models.experts import Experts, RunExperts


class TritonOps:
    """No operation waits for the device, and what is launched depends on shapes alone: a CUDA graph may hold them."""

    def add_rms_norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        if delta is None:
            return rms_norm(residual, weight, eps)
        add_rms_norm(delta, residual, weight, eps)
        return delta

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return silu_and_mul(gate_up)

    def run_experts(self, experts: Experts) -> RunExperts:
        def run(x: Tensor, router_logits: Tensor) -> Tensor:
            weights, chosen = route(router_logits, experts.top_k, renormalize=experts.renormalize)
            return expert_mlp(x, experts.gate_up, experts.down, weights, chosen)

        return run

"""Layer operations as CPU kernels. Imported only where numba is there (`ops.layer_ops`)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from services.worker.cpu_kernels import rms_norm
from services.worker.cpu_kernels.silu_and_mul import silu_and_mul
from services.worker.models.experts import Experts, GroupedExperts, RunExperts


class NumbaOps:
    """One pass over the data each; experts are as with `TorchOps`."""

    def add_rms_norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        if delta is None:
            out = residual.new_empty(residual.shape)
            rms_norm.rms_norm(residual.numpy(), weight.numpy(), np.float32(eps), out.numpy())
            return out
        rms_norm.add_rms_norm(residual.numpy(), delta.numpy(), weight.numpy(), np.float32(eps))
        return delta

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        out = gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
        silu_and_mul(gate_up.numpy(), out.numpy())
        return out

    def run_experts(self, experts: Experts) -> RunExperts:
        return GroupedExperts(experts)

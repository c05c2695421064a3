"""Operations of a layer that devices do differently: the seam between model files and kernels.

`TorchOps` is the reference and what CPUs run; `TritonOps` fuses what a GPU would otherwise read and write twice.
Rotary embedding and the KV write belong to the attention backend (`attention/`), which knows where the pool is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one layer: this rank's columns of all of them."""

    gate_up: Tensor
    """[E, 2 * I, N], gate rows first"""
    down: Tensor
    """[E, N, I]"""
    top_k: int
    """Experts of each token."""
    renormalize: bool
    """The weights of a token's experts sum to 1."""


class LayerOps(Protocol):
    """Stateless. Called by model files."""

    def add_rms_norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Add `delta` [T, N] to `residual` [T, N] in place and return the norm of the sum; `delta` may be used up."""

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [T, 2 * I], gate first: [T, I]"""

    def expert_mlp(self, x: Tensor, router_logits: Tensor, experts: Experts) -> Tensor:
        """Every token of `x` [T, N] through its likeliest experts by `router_logits` [T, E], summed by their weights.

        An expert computes down(silu(gate(x)) * up(x)); its weight is the softmax over all experts. Returns [T, N].
        """


class TorchOps:
    """PyTorch operators, any device."""

    def add_rms_norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        if delta is not None:
            residual.add_(delta)
        return F.rms_norm(residual, weight.shape, weight, eps)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate).mul_(up)

    def expert_mlp(self, x: Tensor, router_logits: Tensor, experts: Experts) -> Tensor:
        """Waits for a GPU: the host learns how many tokens each expert got. Experts without tokens are not read."""
        weights, chosen = router_logits.softmax(1, dtype=torch.float32).topk(experts.top_k, dim=1)
        if experts.renormalize:
            weights /= weights.sum(1, keepdim=True)
        pairs = chosen.flatten()  # a pair is a token's choice of an expert: token * top_k + choice
        order = pairs.argsort(stable=True)
        inputs = x.index_select(0, order // experts.top_k)
        outputs = torch.empty_like(inputs)
        stop = 0
        for expert, count in enumerate(pairs.bincount().tolist()):
            start, stop = stop, stop + count
            if count:
                inner = self.silu_and_mul(F.linear(inputs[start:stop], experts.gate_up[expert]))
                outputs[start:stop] = F.linear(inner, experts.down[expert])
        by_pair = torch.empty_like(outputs).index_copy_(0, order, outputs)
        return (by_pair.view(*chosen.shape, -1) * weights.unsqueeze(2)).sum(1).to(x.dtype)  # in fp32


def layer_ops(backend: str) -> LayerOps:
    """The operations that go with an attention backend: with `torch` no kernel of ours runs, so it stays the oracle."""
    if backend == "torch":
        return TorchOps()
    from services.worker.models.triton_ops import TritonOps

    return TritonOps()

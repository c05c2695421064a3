"""The weights of a layer's experts, and how PyTorch operators compute them: the reference, and what CPUs run.

Called by `ops.TorchOps`; the same from kernels is in `triton_ops.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from services.worker.models.linear import MakeProduct, Product, WeightBytes
from services.worker.quantization.weights import Weight


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one layer: this rank's columns of all of them, and how a token chooses."""

    gate_up: Tensor | list[Weight]
    """[E, 2 * I, N], gate rows first; or each expert's [2 * I, N] in a form of its own"""
    down: Tensor | list[Weight]
    """[E, N, I]"""
    top_k: int
    """Experts of each token."""
    renormalize: bool
    """The weights of a token's experts sum to 1."""
    dtype: torch.dtype = torch.float32
    """Of activations; plain weights have it too."""
    sizes: WeightBytes = field(default_factory=WeightBytes)
    """What the experts take is to be added here."""


class RunExperts(Protocol):
    """Every token through its likeliest experts, summed by their weights.

    An expert computes down(silu(gate(x)) * up(x)); its weight is its part of the softmax over all experts.
    """

    def __call__(self, x: Tensor, router_logits: Tensor) -> Tensor:
        """[T, N], [T, E] -> [T, N]"""


class GroupedExperts:
    """Tokens ordered by expert, then two products for every expert that has some; the others are not read.

    Each expert's weights are packed for themselves. Waits for a GPU: the host learns the tokens of each.
    """

    def __init__(self, experts: Experts, make: MakeProduct) -> None:
        self._top_k, self._renormalize = experts.top_k, experts.renormalize
        self._gate_up: list[Product] = []
        self._down: list[Product] = []
        for stack, products in ((experts.gate_up, self._gate_up), (experts.down, self._down)):
            for weight in stack:
                products.append(make(weight, experts.dtype))
                experts.sizes.add(weight, products[-1].nbytes, experts.dtype)

    def __call__(self, x: Tensor, router_logits: Tensor) -> Tensor:
        weights, chosen = router_logits.softmax(1, dtype=torch.float32).topk(self._top_k, dim=1)
        if self._renormalize:
            weights /= weights.sum(1, keepdim=True)
        pairs = chosen.flatten()  # a pair is a token's choice of an expert: token * top_k + choice
        order = pairs.argsort(stable=True)
        inputs = x.index_select(0, order // self._top_k)
        outputs = torch.empty_like(inputs)
        stop = 0
        for expert, count in enumerate(pairs.bincount().tolist()):
            start, stop = stop, stop + count
            if count:
                gate, up = self._gate_up[expert](inputs[start:stop], None).chunk(2, dim=1)
                outputs[start:stop] = self._down[expert](F.silu(gate).mul_(up), None)
        by_pair = torch.empty_like(outputs).index_copy_(0, order, outputs)
        return (by_pair.view(*chosen.shape, -1) * weights.unsqueeze(2)).sum(1).to(x.dtype)  # in fp32

"""The experts of a layer as GPU kernels: plain weights in one stack, or packed ones of one form. Imported only where
Triton is there.

Nothing waits for the device, and what is launched depends on shapes alone: a CUDA graph may hold it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from services.worker.kernels.expert_mlp import expert_mlp
from services.worker.kernels.expert_routing import route
from services.worker.kernels.expert_tiles import ExpertCodes, ExpertTiles, stack_tiles
from services.worker.kernels.packed_experts import packed_expert_mlp
from services.worker.models.experts import Experts
from services.worker.quantization.weights import Fp8Weight, IntWeight, Weight, expanded


class TritonExperts:
    """Weights stay packed where all experts of both products have one form each; else all of them are expanded."""

    def __init__(self, experts: Experts) -> None:
        self._top_k, self._renormalize = experts.top_k, experts.renormalize
        gate_up, down = _stack(experts.gate_up), _stack(experts.down)
        self._mlp: Callable[..., Tensor]
        if gate_up is not None and down is not None:
            sizes = gate_up.nbytes, down.nbytes
            self._mlp = functools.partial(packed_expert_mlp, gate_up=gate_up, down=down)
        else:
            plain = _plain(experts.gate_up, experts.dtype), _plain(experts.down, experts.dtype)
            sizes = plain[0].nbytes, plain[1].nbytes
            self._mlp = functools.partial(expert_mlp, gate_up=plain[0], down=plain[1])
        for weights, nbytes in zip((experts.gate_up, experts.down), sizes, strict=True):
            for weight in weights:
                experts.sizes.add(weight, nbytes // len(weights), experts.dtype)

    def __call__(self, x: Tensor, router_logits: Tensor) -> Tensor:
        weights, chosen = route(router_logits, self._top_k, renormalize=self._renormalize)
        return self._mlp(x, weights=weights, experts=chosen)


def _plain(weights: Tensor | list[Weight], dtype: torch.dtype) -> Tensor:
    return weights if isinstance(weights, Tensor) else torch.stack([expanded(weight, dtype) for weight in weights])


def _stack(weights: Tensor | list[Weight]) -> ExpertTiles | None:
    """None: no kernel computes with all of them; some are plain, not all have one form, or 8 bits have offsets."""
    if isinstance(weights, Tensor) or len({_form(weight) for weight in weights}) > 1:
        return None
    ints = [weight for weight in weights if isinstance(weight, IntWeight)]
    if any(weight.bits == 8 and weight.offsets is not None for weight in ints):
        return None
    if ints:
        every = torch.arange(ints[0].shape[1], device=ints[0].codes.device)
        ordered = any(weight.order is not None for weight in ints)
        orders = [(every if w.order is None else w.order) if ordered else None for w in ints]
        codes = [ExpertCodes(w.codes, w.scales, w.offsets, order) for w, order in zip(ints, orders, strict=True)]
        return stack_tiles(ints[0].bits, codes)
    floats = [ExpertCodes(w.codes, w.scales, None, None) for w in weights if isinstance(w, Fp8Weight)]
    return stack_tiles(8, floats) if floats else None


def _form(weight: Weight) -> tuple[object, ...]:
    """What must be alike for one kernel to compute with several weights."""
    if isinstance(weight, Tensor):
        return (Tensor,)
    return type(weight), weight.codes.dtype, weight.scales.shape[1]

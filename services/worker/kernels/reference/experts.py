"""Reference of mixture of experts: every token through its experts, one expert at a time."""

from __future__ import annotations

import torch

from services.worker.kernels.reference.elementwise import silu_and_mul


def route(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """weights and experts [T, top_k]."""
    weights, experts = logits.softmax(-1).topk(top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True) if renormalize else weights, experts


def expert_mlp(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor
) -> torch.Tensor:
    """[T, N], in the dtype of `x`; weights of the experts are cast one expert at a time."""
    out = torch.zeros_like(x)
    for expert in range(down.shape[0]):
        token, choice = (experts == expert).nonzero(as_tuple=True)
        if token.numel():
            inner = silu_and_mul(x[token] @ gate_up[expert].to(x.dtype).T)
            out.index_add_(0, token, inner @ down[expert].to(x.dtype).T * weights[token, choice].to(x.dtype)[:, None])
    return out

"""Reference of the norms, the rotary embedding with its KV write, and the gated activation."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Norm of the last dimension, times `weight`."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2 * I] -> [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def rotate(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Neox rotary of [T, heads, D] with a table [max_pos, D] of cos, then sin."""
    cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def rotate_and_store(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    out_cache_loc: torch.Tensor,
    num_q_heads: int,
    qk_norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
) -> None:
    """In place: q of `qkv` rotated, k rotated and v written to the pools where the slot is not negative."""
    num_kv_heads, head_dim = k_pool.shape[1:]
    heads = qkv.view(qkv.shape[0], num_q_heads + 2 * num_kv_heads, head_dim)
    q, k, v = heads.tensor_split([num_q_heads, num_q_heads + num_kv_heads], dim=1)
    if qk_norm is not None:
        q, k = rms_norm(q, qk_norm[0], qk_norm[2]), rms_norm(k, qk_norm[1], qk_norm[2])
    real = out_cache_loc >= 0
    slots = out_cache_loc[real].long()
    k_pool[slots] = rotate(k, positions, cos_sin)[real].to(k_pool.dtype)
    v_pool[slots] = v[real].to(v_pool.dtype)
    heads[:, :num_q_heads] = rotate(q, positions, cos_sin).to(qkv.dtype)

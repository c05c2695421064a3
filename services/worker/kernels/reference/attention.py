"""Reference of attention over the paged KV pool: gathers each row's context and attends with an explicit mask."""

from __future__ import annotations

import torch


def paged_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    page_table: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_q: torch.Tensor,
    *,
    page_size: int,
    scale: float,
    window: int = 0,
) -> torch.Tensor:
    """Causal attention of ragged queries at the end of their rows.

    Args:
        q: [T, H, D]; computed in its dtype (pass float64 for an oracle).
        rows, seq_lens: [R]; query i of a row sits at position seq_len - q_len + i.
        window: a query sees the `window` newest positions including its own; 0 = all.

    Returns:
        [T, H, D] in q's dtype; queries of rows of length 0 give zeros.
    """
    out = torch.zeros_like(q)
    group = q.shape[1] // k_pool.shape[1]
    for i in range(rows.shape[0]):
        begin, end, length = int(cu_q[i]), int(cu_q[i + 1]), int(seq_lens[i])
        if begin == end or length == 0:
            continue
        position = torch.arange(length, device=q.device)
        page = page_table[int(rows[i])].long()[position // page_size]
        slot = page * page_size + position % page_size
        k = k_pool[slot].to(q.dtype).repeat_interleave(group, dim=1)
        v = v_pool[slot].to(q.dtype).repeat_interleave(group, dim=1)
        asked = torch.arange(length - (end - begin), length, device=q.device)[:, None]
        seen = position[None, :] <= asked
        if window:
            seen &= position[None, :] > asked - window
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, v)
    return out

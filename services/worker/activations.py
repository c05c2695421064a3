"""How much memory a forward needs beside weights and KV pool, found by running one. Called once, before the pool is
sized."""

from __future__ import annotations

import torch
from torch import Tensor

from services.worker.models.registry import Model
from services.worker.models.rope import QkNorm, Rotation

SLACK_BYTES = 512 << 20
"""For CUDA graphs, workspaces of libraries, sampling and fragmentation."""


@torch.inference_mode()
def activation_bytes(model: Model, *, tokens: int, rows: int, attention_width: int, device: torch.device) -> int:
    """Peak of a step with `tokens` prompt tokens and `rows` sampled ones, on a CUDA device; 0 elsewhere.

    Args:
        attention_width: H * D of this rank.
    """
    if device.type != "cuda":
        return 0

    def attend(layer: int, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> Tensor:
        return qkv[:, :attention_width].contiguous()

    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    ids = torch.zeros(tokens + rows, dtype=torch.int64, device=device)
    hidden = model.forward(ids, ids, attend)
    logits = model.logits(hidden[:rows])
    if logits is not None:
        logits.float()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before + SLACK_BYTES

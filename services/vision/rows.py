"""Embeddings as they leave the encoder's device: raw rows in host memory."""

from __future__ import annotations

import numpy as np
import torch


def host_rows(embeddings: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """The bytes of embeddings, as `shared.embedding_file` keeps them.

    Shape:
        [tokens, width] to contiguous uint8 [tokens, width * bytes of dtype]
    """
    rows = embeddings.detach().to(dtype).contiguous()
    if rows.is_cuda:  # a copy to pageable memory runs at a fifth of the bus's rate
        pinned = torch.empty(rows.shape, dtype=dtype, pin_memory=True)
        rows = pinned.copy_(rows)
    return rows.view(torch.uint8).reshape(rows.shape[0], -1).numpy()


def dtype_name(dtype: torch.dtype) -> str:
    """As `EmbeddingRef.dtype` spells it."""
    return str(dtype).removeprefix("torch.")

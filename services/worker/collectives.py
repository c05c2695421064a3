"""What the process groups on CPUs and on GPUs do alike with torch's collectives. Called by `gloo_group.py` and
`nccl_group.py`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def gather_columns(x: Tensor, widths: list[int], rank: int, group: dist.ProcessGroup | None) -> Tensor | None:
    """The ranks' [N, widths[rank]] side by side on rank 0; None elsewhere. Does not wait for a GPU.

    Args:
        group: None = the default one.
    """
    rows, widest = len(x), max(widths)
    mine = x.contiguous() if x.shape[1] == widest else F.pad(x, (0, widest - x.shape[1]))
    if rank != 0:
        dist.gather(mine, None, group=group)
        return None
    parts = x.new_empty((len(widths), rows, widest))
    dist.gather(mine, list(parts.unbind()), group=group)
    if min(widths) == widest:
        return parts.transpose(0, 1).reshape(rows, sum(widths))
    return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], dim=1)

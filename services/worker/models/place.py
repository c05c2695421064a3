"""Where the parts of a model are made. Model files get one `Place`; the registry makes it, once per model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.worker.models.linear import Linear
from services.worker.models.ops import LayerOps
from services.worker.tensor_parallel import Communicator, Shard


@dataclass(frozen=True, slots=True)
class Place:
    """A rank and its device: what of a model is held here, in which memory, and what computes with it."""

    shard: Shard
    comm: Communicator
    ops: LayerOps
    dtype: torch.dtype
    device: torch.device

    def linear(self, in_features: int, out_features: int, *, bias: bool = False) -> Linear:
        """An unloaded product."""
        return Linear(self.empty(out_features, in_features), self.empty(out_features) if bias else None)

    def empty(self, *shape: int) -> Tensor:
        """An unloaded weight."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

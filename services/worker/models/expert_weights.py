"""The weights of a layer's experts while they are loaded: one stack of plain ones, or each expert's as it is stored.

Made and used up by `expert_mlp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.worker.models.experts import Experts
from services.worker.models.linear import plain
from services.worker.models.place import Place
from services.worker.quantization.stored import Part, Stored
from services.worker.quantization.weights import Weight, beside, expanded
from shared.checkpoint.target import Target
from shared.moe_config import MoeConfig


@dataclass(frozen=True, slots=True)
class _Expert:
    gate: Stored
    up: Stored
    down: Stored

    def targets(self, index: int) -> dict[str, Target]:
        parts = {"gate_proj": self.gate, "up_proj": self.up, "down_proj": self.down}
        return {
            f"{index}.{name}.{tensor}": target
            for name, stored in parts.items()
            for tensor, target in stored.targets.items()
        }


class ExpertWeights:
    """This rank's columns of every expert of a layer."""

    def __init__(self, hidden: int, moe: MoeConfig, place: Place) -> None:
        self._moe, self._place = moe, place
        columns, full = place.shard.columns(moe.intermediate_size), moe.intermediate_size
        width, every = columns.stop - columns.start, slice(0, hidden)
        self._parts = [
            (
                Part(f"{place.path}{index}.gate_proj", columns, full, every, hidden),
                Part(f"{place.path}{index}.up_proj", columns, full, every, hidden),
                Part(f"{place.path}{index}.down_proj", every, hidden, columns, full),
            )
            for index in range(moe.num_experts)
        ]
        stored = [[place.stored(part) for part in parts] for parts in self._parts]
        self._stacks: tuple[Tensor, Tensor] | None = None
        if not any(s for parts in stored for s in parts):
            gate_up, down = place.empty(moe.num_experts, 2 * width, hidden), place.empty(moe.num_experts, hidden, width)
            self._stacks = gate_up, down
            views = [(*torch.chunk(pair, 2), single) for pair, single in zip(gate_up, down, strict=True)]
            stored = [[plain(*pv) for pv in zip(*pvs, strict=True)] for pvs in zip(self._parts, views, strict=True)]
        self._experts = [
            _Expert(*(s or plain(part, place.empty(part.width, part.depth)) for s, part in zip(ss, parts, strict=True)))
            for ss, parts in zip(stored, self._parts, strict=True)
        ]

    def targets(self) -> dict[str, Target]:
        out: dict[str, Target] = {}
        for index, expert in enumerate(self._experts):
            out |= expert.targets(index)
        return out

    def read(self) -> Experts:
        """Once, after loading."""
        dtype, sizes = self._place.dtype, self._place.sizes
        if self._stacks is not None:
            return Experts(*self._stacks, self._moe.top_k, self._moe.renormalize, dtype, sizes)
        gate_up = [self._one(expert.gate.read(), expert.up.read()) for expert in self._experts]
        down = [expert.down.read() for expert in self._experts]
        return Experts(gate_up, down, self._moe.top_k, self._moe.renormalize, dtype, sizes)

    def _one(self, gate: Weight, up: Weight) -> Weight:
        """Both beside each other; of unlike kinds, as plain weights."""
        joined = beside((gate, up))
        if len(joined) == 1:
            return joined[0]
        self._place.sizes.expanded |= any(not isinstance(weight, Tensor) for weight in joined)
        return torch.cat([expanded(weight, self._place.dtype) for weight in joined])

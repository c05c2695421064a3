"""The part of a decoder layer after attention: what all kinds of it have in common, and the dense one.

`llama.py` puts a `Mlp` into each layer without knowing which kind; the sparse kinds are in `expert_mlp.py`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from services.worker.models.place import Place
from services.worker.quantization.rounded import Activations, Reader
from shared.checkpoint.target import Target


class Mlp(Reader, Protocol):
    """Weights and arithmetic of one rank. What the ranks return adds up: the caller sums over them, once."""

    def targets(self) -> dict[str, Target]:
        """Names inside the MLP to memory."""

    def pack(self) -> None:
        """Bring weights into their final layout. Call once, after loading."""

    def __call__(self, x: Activations) -> Tensor:
        """[T, hidden] -> [T, hidden], this rank's share of the sum"""


class GatedMlp:
    """down(silu(gate(x)) * up(x)); gate and up are one product."""

    def __init__(self, hidden: int, intermediate: int, place: Place, *, bias: bool = False) -> None:
        take = place.shard.columns(intermediate), intermediate
        self._ops, self._rank, self._gated = place.ops, place.shard.rank, False
        self._gate_up = place.columns({"gate_proj": take, "up_proj": take}, hidden, bias=bias)
        self._down = place.rows("down_proj", take, hidden, bias=bias)

    def targets(self) -> dict[str, Target]:
        return self._gate_up.targets() | self._down.targets()

    def pack(self) -> None:
        if self._rank != 0:  # a bias after a sum over ranks is added once
            self._down.bias = None
        self._gated = self._gate_up.pack(self._ops.gated_product)
        self._down.pack()

    def rounds(self, tokens: int) -> bool:
        return self._gate_up.rounds(tokens)

    def __call__(self, x: Activations) -> Tensor:
        inner = self._gate_up(x)
        return self._down(inner if self._gated else self._ops.silu_and_mul(inner, self._down))

"""Mixture of experts in place of a dense MLP, with or without an expert that all tokens share.

Of every expert a rank holds its columns, as of a dense MLP: all ranks compute for all tokens and their outputs add up.
The router is whole on every rank, so all of them choose the same experts. Called by `llama.py`, for layers that
`ModelConfig.moe` names.
"""

from __future__ import annotations

from torch import Tensor

from services.worker.models.expert_weights import ExpertWeights
from services.worker.models.experts import RunExperts
from services.worker.models.mlp import GatedMlp, Mlp
from services.worker.models.place import Place
from services.worker.quantization.rounded import Activations
from shared.checkpoint.target import Target, under
from shared.model_config import ModelConfig
from shared.moe_config import MoeConfig


class ExpertMlp:
    """A router and the experts that it chooses from: Mixtral, Qwen3-MoE."""

    def __init__(self, hidden: int, moe: MoeConfig, place: Place) -> None:
        self._router = place.whole("gate", hidden, moe.num_experts)
        self._weights: ExpertWeights | None = ExpertWeights(hidden, moe, place.inside("experts"))
        self._ops = place.ops
        self._run: RunExperts | None = None

    def targets(self) -> dict[str, Target]:
        assert self._weights is not None, "packed already"
        return self._router.targets() | under("experts", self._weights.targets())

    def pack(self) -> None:
        assert self._weights is not None, "packed already"
        self._router.pack()
        self._run, self._weights = self._ops.run_experts(self._weights.read()), None

    def rounds(self, tokens: int) -> bool:
        """Never: the router reads them as they are."""
        return False

    def __call__(self, x: Activations) -> Tensor:
        assert isinstance(x, Tensor)
        assert self._run is not None, "not packed yet"
        return self._run(x, self._router(x))


class SharedExpertMlp:
    """Experts, and one more that every token goes to, weighted by a gate of its own: Qwen2-MoE."""

    def __init__(self, hidden: int, moe: MoeConfig, place: Place) -> None:
        self._routed = ExpertMlp(hidden, moe, place)
        self._shared = GatedMlp(hidden, moe.shared_intermediate_size, place.inside("shared_expert"))
        self._gate = place.whole("shared_expert_gate", hidden, 1)

    def targets(self) -> dict[str, Target]:
        return self._routed.targets() | under("shared_expert", self._shared.targets()) | self._gate.targets()

    def pack(self) -> None:
        self._routed.pack()
        self._shared.pack()
        self._gate.pack()

    def rounds(self, tokens: int) -> bool:
        return self._routed.rounds(tokens)

    def __call__(self, x: Activations) -> Tensor:
        shared = self._shared(x).mul_(self._gate(x).sigmoid_())
        return self._routed(x).add_(shared)


def layer_mlp(config: ModelConfig, layer: int, place: Place) -> Mlp:
    """What `config` puts into `layer`."""
    hidden, moe = config.hidden_size, config.moe
    if moe is None or layer not in moe.layers:
        return GatedMlp(hidden, config.intermediate_size, place, bias=config.mlp_bias)
    return SharedExpertMlp(hidden, moe, place) if moe.shared_intermediate_size else ExpertMlp(hidden, moe, place)

"""Architecture names of Hugging Face checkpoints to model builders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from services.worker.models.llama import Attend, LlamaModel
from services.worker.models.media_input import MediaInput
from services.worker.models.place import Place
from services.worker.models.rope import Rotation
from shared.checkpoint.target import Target
from shared.errors import ConfigError
from shared.model_config import ModelConfig


class Model(Protocol):
    """What the engine needs of a model. See `llama.py` for shapes."""

    def targets(self) -> dict[str, Target]: ...
    def finish_loading(self) -> None: ...
    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, media: MediaInput | None = None) -> Tensor: ...
    def embed(self, ids: Tensor) -> Tensor: ...
    def rotation(self, positions: Tensor) -> Rotation: ...
    def through_layers(
        self, residual: Tensor, rotation: Rotation, attend: Attend, media: MediaInput | None = None
    ) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor | None: ...


_WITH_QK_NORM = functools.partial(LlamaModel, qk_norm=True)
_BUILDERS: dict[str, Callable[[ModelConfig, Place], Model]] = {
    "LlamaForCausalLM": LlamaModel,
    "MistralForCausalLM": LlamaModel,
    "MixtralForCausalLM": LlamaModel,
    "Qwen2ForCausalLM": LlamaModel,
    "Qwen2MoeForCausalLM": LlamaModel,
    "Qwen3ForCausalLM": _WITH_QK_NORM,
    "Qwen3MoeForCausalLM": _WITH_QK_NORM,
}


def build_model(config: ModelConfig, place: Place) -> Model:
    """An unloaded model.

    Raises:
        ConfigError: the architecture is not one of ours.
    """
    builder = _BUILDERS.get(config.architecture)
    if builder is None:
        raise ConfigError(f"architecture {config.architecture!r} is not supported: use one of {', '.join(_BUILDERS)}")
    return builder(config, place)


def attention_windows(config: ModelConfig) -> list[int | None]:
    """Sliding window of each layer in tokens; None = sees everything."""
    window, layers = config.sliding_window, config.num_layers
    if window is None or window >= config.context_length:
        return [None] * layers
    kinds = config.raw.get("layer_types")
    if kinds:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    first = int(config.raw.get("max_window_layers", 0)) if config.model_type.startswith("qwen") else 0
    return [window if i >= first else None for i in range(layers)]

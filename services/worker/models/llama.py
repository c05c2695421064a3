"""The Llama family: Llama 2/3.x, SmolLM2, Mistral, Qwen2 (q/k/v bias), Qwen3 (norms on q and k), and those of them with
experts: Mixtral, Qwen2-MoE, Qwen3-MoE.

The variants are switches of `ModelConfig`; the shape of the computation is one. Tensor parallel throughout: heads,
MLP columns and vocabulary are this rank's shard. Must not know rows, pages, plans or devices: it gets tokens [T],
positions [T], a function that attends, and the operations that devices do differently (`ops.py`). What follows
attention in a layer is a part of its own (`mlp.py`).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from services.worker.models.expert_mlp import layer_mlp
from services.worker.models.media_input import MediaInput
from services.worker.models.place import Place
from services.worker.models.rope import QkNorm, Rotary, Rotation
from shared.checkpoint.target import Target, under, whole
from shared.errors import ConfigError
from shared.model_config import ModelConfig


class Attend(Protocol):
    """Attention of one step: turns queries and keys, stores the layer's keys and values, returns what queries see."""

    def __call__(self, layer: int, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> Tensor:
        """qkv [T, (H + 2 * G) * D], heads of q, then k, then v; may be changed -> [T, H * D]"""


class LlamaModel:
    """Weights and forward pass of one rank."""

    def __init__(self, config: ModelConfig, place: Place, *, qk_norm: bool = False) -> None:
        if config.hidden_act != "silu":
            raise ConfigError(f"hidden_act {config.hidden_act!r} is not supported: this family uses silu")
        self.config, self._shard, self._comm, self._ops = config, place.shard, place.comm, place.ops
        self._rotary = Rotary(config.rope, config.head_dim, config.context_length, place.dtype, place.device)
        vocab = self._shard.vocab, config.vocab_size
        self._embed = place.embedding("embed_tokens", vocab, config.hidden_size)
        self._norm = place.empty(config.hidden_size)
        self._layers = [_Layer(config, place.inside(f"layers.{i}"), i, qk_norm) for i in range(config.num_layers)]
        if config.tie_embeddings:
            self._head = place.tied("lm_head", self._embed)
        else:
            self._head = place.columns({"lm_head": vocab}, config.hidden_size)

    def targets(self) -> dict[str, Target]:
        """Checkpoint names (`checkpoint_names.py`) to memory."""
        out = under("embed_tokens", self._embed.targets()) | {"norm.weight": whole(self._norm, is_norm=True)}
        if not self.config.tie_embeddings:
            out |= self._head.targets()
        for i, layer in enumerate(self._layers):
            out |= under(f"layers.{i}", layer.targets())
        return out

    def finish_loading(self) -> None:
        """Bring weights into their final layout."""
        self._embed.pack()
        for layer in self._layers:
            layer.pack()
        self._head.pack()

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, media: MediaInput | None = None) -> Tensor:
        """[walk 9] Hidden states [T, hidden] of tokens `ids` [T] at rotary `positions` [T] or [3, T]; ragged rows, no
        padding. `media` takes the place of some ids."""
        residual = self.embed(ids)
        if media is not None:
            media.embed_(residual)
        return self.through_layers(residual, self.rotation(positions), attend, media)

    def embed(self, ids: Tensor) -> Tensor:
        """[T, hidden] of tokens `ids` [T], this call's own."""
        if self._comm.size == 1:
            return self._embed(ids)
        start, stop = self._shard.vocab.start, self._shard.vocab.stop
        elsewhere = (ids < start) | (ids >= stop)
        x = self._embed((ids - start).masked_fill_(elsewhere, 0))
        return self._comm.all_reduce(x.masked_fill_(elsewhere.unsqueeze(1), 0.0))

    def rotation(self, positions: Tensor) -> Rotation:
        """Of tokens at `positions` [T] or [3, T]."""
        return Rotation(self._rotary, positions)

    def through_layers(
        self, residual: Tensor, rotation: Rotation, attend: Attend, media: MediaInput | None = None
    ) -> Tensor:
        """Hidden states [T, hidden] of embedded tokens [T, hidden], which are used up."""
        delta = None
        for i, layer in enumerate(self._layers):
            delta = layer.forward_(residual, delta, rotation, i, attend)
            if media is not None:
                media.add_behind_(i, residual)
        return residual if delta is None else residual.add_(delta)

    def logits(self, hidden: Tensor) -> Tensor | None:
        """[N, V] in the model's dtype for `hidden` [N, hidden], on rank 0; None on the other ranks."""
        h = self._ops.add_rms_norm(hidden, None, self._norm, self.config.rms_norm_eps, self._head)
        return self._comm.gather_columns(self._head(h), self._shard.vocab_widths)


class _Layer:
    """One decoder layer: attention, whose q, k, v are one product, then `mlp`."""

    def __init__(self, config: ModelConfig, place: Place, index: int, qk_norm: bool) -> None:
        self._shard, self._comm, self._ops = place.shard, place.comm, place.ops
        self._eps, dim, hidden = config.rms_norm_eps, config.head_dim, config.hidden_size
        q = _times(self._shard.q_heads, dim), config.num_q_heads * dim
        kv = _times(self._shard.kv_heads, dim), config.num_kv_heads * dim
        attention = place.inside("self_attn")
        self._qkv = attention.columns({"q_proj": q, "k_proj": kv, "v_proj": kv}, hidden, bias=config.attention_bias)
        self._o = attention.rows("o_proj", q, hidden, bias=config.attention_out_bias)
        self._mlp = layer_mlp(config, index, place.inside("mlp"))
        self._norm_in, self._norm_mlp = place.empty(hidden), place.empty(hidden)
        self._qk_norm: QkNorm | None = (place.empty(dim), place.empty(dim), self._eps) if qk_norm else None

    def targets(self) -> dict[str, Target]:
        """Names inside the layer to memory."""
        norms = {"input_layernorm": self._norm_in, "post_attention_layernorm": self._norm_mlp}
        if self._qk_norm is not None:
            norms["self_attn.q_norm"], norms["self_attn.k_norm"], _ = self._qk_norm
        out = under("self_attn", self._qkv.targets() | self._o.targets()) | under("mlp", self._mlp.targets())
        return out | {f"{name}.weight": whole(weight, is_norm=True) for name, weight in norms.items()}

    def pack(self) -> None:
        """Bring weights into their final layout."""
        if self._shard.rank != 0:  # a bias after a sum over ranks is added once
            self._o.bias = None
        self._qkv.pack()
        self._o.pack()
        self._mlp.pack()

    def forward_(
        self, residual: Tensor, delta: Tensor | None, rotation: Rotation, index: int, attend: Attend
    ) -> Tensor:
        """Add `delta`, what the layer before returned, and attention to the residual stream [T, hidden] in place.

        Returns what the MLP adds: the next norm adds it, in one pass with its own work.
        """
        ops, all_reduce = self._ops, self._comm.all_reduce
        h = ops.add_rms_norm(residual, delta, self._norm_in, self._eps, self._qkv)
        attended = attend(index, self._qkv(h), rotation, self._qk_norm)
        h = ops.add_rms_norm(residual, all_reduce(self._o(attended)), self._norm_mlp, self._eps, self._mlp)
        return all_reduce(self._mlp(h))


def _times(heads: slice, dim: int) -> slice:
    return slice(heads.start * dim, heads.stop * dim)

"""The Llama family: Llama 2/3.x, SmolLM2, Mistral, Qwen2 (q/k/v bias), Qwen3 (norms on q and k).

The variants are switches of `ModelConfig`; the shape of the computation is one. Tensor parallel throughout: heads,
MLP columns and vocabulary are this rank's shard. Must not know rows, pages, plans or devices: it gets tokens [T],
positions [T], a function that attends, and the operations that devices do differently (`ops.py`).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from services.worker.models.linear import Linear
from services.worker.models.ops import LayerOps
from services.worker.models.rope import QkNorm, Rotary, Rotation
from services.worker.models.weights import ALL, Target
from services.worker.tensor_parallel import Communicator, Shard
from shared.errors import ConfigError
from shared.model_config import ModelConfig


class Attend(Protocol):
    """Attention of one step: turns queries and keys, stores the layer's keys and values, returns what queries see."""

    def __call__(self, layer: int, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> Tensor:
        """qkv [T, (H + 2 * G) * D], heads of q, then k, then v; may be changed -> [T, H * D]"""


class LlamaModel:
    """Weights and forward pass of one rank."""

    def __init__(
        self,
        config: ModelConfig,
        shard: Shard,
        comm: Communicator,
        ops: LayerOps,
        *,
        dtype: torch.dtype,
        device: torch.device,
        qk_norm: bool = False,
    ) -> None:
        if config.hidden_act != "silu":
            raise ConfigError(f"hidden_act {config.hidden_act!r} is not supported: this family uses silu")
        self.config, self._shard, self._comm, self._ops = config, shard, comm, ops
        self._rotary = Rotary(config.rope, config.head_dim, config.context_length, dtype, device)
        vocab = shard.vocab_widths[comm.rank]
        self._embed = torch.empty((vocab, config.hidden_size), dtype=dtype, device=device)
        self._norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self._layers = [
            _Layer(config, shard, comm, ops, qk_norm, dtype=dtype, device=device) for _ in range(config.num_layers)
        ]
        self._head = Linear(config.hidden_size, vocab, bias=False, dtype=dtype, device=device)
        if config.tie_embeddings:
            self._head.weight = self._embed

    def targets(self) -> dict[str, Target]:
        """Checkpoint names (without a leading "model.") to memory."""
        config, vocab = self.config, (self._shard.vocab, ALL)
        table = (config.vocab_size, config.hidden_size)
        out = {
            "embed_tokens.weight": Target(self._embed, table, vocab),
            "norm.weight": Target(self._norm, (config.hidden_size,), (ALL,), is_norm=True),
        }
        if not config.tie_embeddings:
            out["lm_head.weight"] = Target(self._head.weight, table, vocab)
        for i, layer in enumerate(self._layers):
            out |= {f"layers.{i}.{name}": target for name, target in layer.targets().items()}
        return out

    def finish_loading(self) -> None:
        """Bring weights into their final layout."""
        for layer in self._layers:
            layer.pack()
        self._head.pack()

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[walk 9] Hidden states [T, hidden] of tokens `ids` [T] at `positions` [T]; ragged rows, no padding."""
        residual, delta = self._embedding(ids), None
        rotation = Rotation(self._rotary, positions)
        for i, layer in enumerate(self._layers):
            delta = layer.forward_(residual, delta, rotation, i, attend)
        return residual if delta is None else residual.add_(delta)

    def logits(self, hidden: Tensor) -> Tensor | None:
        """[N, V] in the model's dtype for `hidden` [N, hidden], on rank 0; None on the other ranks."""
        h = self._ops.add_rms_norm(hidden, None, self._norm, self.config.rms_norm_eps)
        return self._comm.gather_columns(self._head(h), self._shard.vocab_widths)

    def _embedding(self, ids: Tensor) -> Tensor:
        if self._comm.size == 1:
            return F.embedding(ids, self._embed)
        start, stop = self._shard.vocab.start, self._shard.vocab.stop
        elsewhere = (ids < start) | (ids >= stop)
        x = F.embedding((ids - start).masked_fill_(elsewhere, 0), self._embed)
        return self._comm.all_reduce(x.masked_fill_(elsewhere.unsqueeze(1), 0.0))


class _Layer:
    """One decoder layer. q, k, v are one product and so are gate and up."""

    def __init__(
        self,
        config: ModelConfig,
        shard: Shard,
        comm: Communicator,
        ops: LayerOps,
        qk_norm: bool,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._config, self._shard, self._comm, self._ops = config, shard, comm, ops
        self._eps, dim = config.rms_norm_eps, config.head_dim
        hidden, mlp = config.hidden_size, shard.mlp.stop - shard.mlp.start
        qkv = (shard.num_q_heads + 2 * shard.num_kv_heads) * dim

        def linear(inp: int, out: int, bias: bool) -> Linear:
            return Linear(inp, out, bias=bias, dtype=dtype, device=device)

        def vector(size: int) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        self._qkv = linear(hidden, qkv, config.attention_bias)
        self._o = linear(shard.num_q_heads * dim, hidden, config.attention_out_bias)
        self._gate_up = linear(hidden, 2 * mlp, config.mlp_bias)
        self._down = linear(mlp, hidden, config.mlp_bias)
        self._norm_in, self._norm_mlp = vector(hidden), vector(hidden)
        self._qk_norm: QkNorm | None = (vector(dim), vector(dim), self._eps) if qk_norm else None

    def targets(self) -> dict[str, Target]:
        """Names inside the layer to memory."""
        c, s, dim = self._config, self._shard, self._config.head_dim
        q, kv = _times(s.q_heads, dim), _times(s.kv_heads, dim)
        q_rows, kv_rows, mlp = q.stop - q.start, kv.stop - kv.start, s.mlp.stop - s.mlp.start
        out: dict[str, Target] = {}
        _columns(out, "self_attn.q_proj", self._qkv, 0, q_rows, q, c.num_q_heads * dim)
        _columns(out, "self_attn.k_proj", self._qkv, q_rows, kv_rows, kv, c.num_kv_heads * dim)
        _columns(out, "self_attn.v_proj", self._qkv, q_rows + kv_rows, kv_rows, kv, c.num_kv_heads * dim)
        _columns(out, "mlp.gate_proj", self._gate_up, 0, mlp, s.mlp, c.intermediate_size)
        _columns(out, "mlp.up_proj", self._gate_up, mlp, mlp, s.mlp, c.intermediate_size)
        _rows(out, "self_attn.o_proj", self._o, q, c.num_q_heads * dim)
        _rows(out, "mlp.down_proj", self._down, s.mlp, c.intermediate_size)
        norms = {"input_layernorm": self._norm_in, "post_attention_layernorm": self._norm_mlp}
        if self._qk_norm is not None:
            norms["self_attn.q_norm"], norms["self_attn.k_norm"], _ = self._qk_norm
        for name, weight in norms.items():
            out[f"{name}.weight"] = Target(weight, tuple(weight.shape), (ALL,), is_norm=True)
        return out

    def pack(self) -> None:
        """Bring weights into their final layout."""
        if self._comm.rank != 0:  # a bias after a sum over ranks is added once
            self._o.bias = self._down.bias = None
        for linear in (self._qkv, self._o, self._gate_up, self._down):
            linear.pack()

    def forward_(
        self, residual: Tensor, delta: Tensor | None, rotation: Rotation, index: int, attend: Attend
    ) -> Tensor:
        """Add `delta`, what the layer before returned, and attention to the residual stream [T, hidden] in place.

        Returns what the MLP adds: the next norm adds it, in one pass with its own work.
        """
        ops, all_reduce = self._ops, self._comm.all_reduce
        h = ops.add_rms_norm(residual, delta, self._norm_in, self._eps)
        attended = attend(index, self._qkv(h), rotation, self._qk_norm)
        h = ops.add_rms_norm(residual, all_reduce(self._o(attended)), self._norm_mlp, self._eps)
        return all_reduce(self._down(ops.silu_and_mul(self._gate_up(h))))


def _times(heads: slice, dim: int) -> slice:
    return slice(heads.start * dim, heads.stop * dim)


def _columns(out: dict[str, Target], name: str, linear: Linear, at: int, count: int, take: slice, full: int) -> None:
    """Output features `take` of `full` go to rows at..at+count of a fused column-parallel weight."""
    rows = slice(at, at + count)
    out[f"{name}.weight"] = Target(linear.weight[rows], (full, linear.weight.shape[1]), (take, ALL))
    if linear.bias is not None:
        out[f"{name}.bias"] = Target(linear.bias[rows], (full,), (take,))


def _rows(out: dict[str, Target], name: str, linear: Linear, take: slice, full: int) -> None:
    """Input features `take` of `full` of a row-parallel weight; its bias is whole, on one rank."""
    out[f"{name}.weight"] = Target(linear.weight, (linear.weight.shape[0], full), (ALL, take))
    if linear.bias is not None:
        out[f"{name}.bias"] = Target(linear.bias, tuple(linear.bias.shape), (ALL,))

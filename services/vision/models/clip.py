"""CLIP's vision tower: squares of one size to the hidden states of its layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from services.vision.models.parts import LayerNorm, Linear, Place, activation
from shared.checkpoint.target import ALL, Target, under, whole
from shared.media_config import PixelScale

_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")


class ClipTower:
    """Computes only the layers below the hidden states that are asked for."""

    def __init__(self, vision: dict[str, Any], feature_layers: Sequence[int], place: Place) -> None:
        """feature_layers: hidden states that `forward` returns; 0 = the input, -1 = after the last layer."""
        width, patch, side = int(vision["hidden_size"]), int(vision["patch_size"]), int(vision["image_size"])
        layers, eps = int(vision["num_hidden_layers"]), float(vision["layer_norm_eps"])
        self._wanted = [layer if layer >= 0 else layers + 1 + layer for layer in feature_layers]
        self._patch = patch
        self._embed = place.linear(3 * patch * patch, width, bias=False)
        self._class = place.empty(width)
        self._positions = place.empty((side // patch) ** 2 + 1, width)
        self._norm = place.layer_norm(width, eps)
        self._layers = [_Layer(vision, place) for _ in range(max(self._wanted))]

    def targets(self) -> dict[str, Target]:
        """Names inside the tower to memory."""
        kernel = self._embed.weight.view(-1, 3, self._patch, self._patch)
        out = {
            "embeddings.class_embedding": whole(self._class),
            "embeddings.patch_embedding.weight": Target(kernel, tuple(kernel.shape), (ALL,) * 4),
            "embeddings.position_embedding.weight": whole(self._positions),
        } | under("pre_layrnorm", self._norm.targets())
        for i, layer in enumerate(self._layers):
            out |= under(f"encoder.layers.{i}", layer.targets())
        return out

    def skips(self, name: str) -> bool:
        """Whether a name inside the tower is of a part that nothing here computes."""
        layer = _LAYER.match(name)
        return name.startswith("post_layernorm.") or (layer is not None and int(layer[1]) >= len(self._layers))

    def forward(self, patches: Tensor) -> Tensor:
        """Scaled patches [B, n, 3 * p * p] -> features [B, 1 + n, width * len(feature_layers)], class token first."""
        x = torch.cat((self._class.expand(len(patches), 1, -1), self._embed(patches)), dim=1)
        x = self._norm(x + self._positions)
        states = {0: x}
        for i, layer in enumerate(self._layers):
            x = layer(x)
            if i + 1 in self._wanted:
                states[i + 1] = x
        return torch.cat([states[layer] for layer in self._wanted], dim=2)


def square_patches(squares: Tensor, patch: int, scale: PixelScale) -> Tensor:
    """squares [B, side, side, 3] uint8 -> scaled patches [B, n, 3 * patch * patch] fp32."""
    count, side = len(squares), squares.shape[1] // patch
    cells = squares.view(count, side, patch, side, patch, 3)
    cells = cells.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(1, 2).float()  # [B, n, C, p * p]
    mean, std = (torch.tensor(values, device=squares.device).unsqueeze(1) for values in (scale.mean, scale.std))
    return cells.mul_(scale.factor).sub_(mean).div_(std).flatten(2)


class _Layer:
    """Norm, attention, norm, MLP."""

    def __init__(self, vision: dict[str, Any], place: Place) -> None:
        width, inner = int(vision["hidden_size"]), int(vision["intermediate_size"])
        eps = float(vision["layer_norm_eps"])
        self._heads, self._act = int(vision["num_attention_heads"]), activation(vision["hidden_act"])
        self._norm1, self._norm2 = place.layer_norm(width, eps), place.layer_norm(width, eps)
        self._qkv, self._out = place.linear(width, 3 * width), place.linear(width, width)
        self._fc1, self._fc2 = place.linear(width, inner), place.linear(inner, width)

    def targets(self) -> dict[str, Target]:
        out: dict[str, Target] = {}
        assert self._qkv.bias is not None
        parts = zip("qkv", self._qkv.weight.chunk(3), self._qkv.bias.chunk(3), strict=True)
        for part, weight, bias in parts:
            out |= {f"self_attn.{part}_proj.weight": whole(weight), f"self_attn.{part}_proj.bias": whole(bias)}
        named: dict[str, Linear | LayerNorm] = {
            "self_attn.out_proj": self._out, "layer_norm1": self._norm1, "layer_norm2": self._norm2,
            "mlp.fc1": self._fc1, "mlp.fc2": self._fc2,
        }  # fmt: skip
        for name, part_of in named.items():
            out |= under(name, part_of.targets())
        return out

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, 1 + n, width]"""
        qkv = self._qkv(self._norm1(x)).view(*x.shape[:2], 3, self._heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, 1 + n, D] each
        x = x + self._out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self._fc2(self._act(self._fc1(self._norm2(x))))

"""Qwen3-VL's vision transformer: learned positions besides rotary ones, embeddings for several layers ("deepstack").

An embedding is the one for the language model's input, then those that its first layers add to what they put out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.vision.models.parts import Place, activation
from services.vision.models.qwen_vit import (
    EPS,
    Block,
    Grid,
    Merger,
    PatchEmbed,
    PlainMlp,
    frame_segments,
    merge_order,
    plane_rotation,
)
from shared.checkpoint.target import Target, under, whole
from shared.media_config import MediaConfig


class Qwen3Vit:
    """See `VisionTransformer`."""

    def __init__(self, config: MediaConfig, place: Place) -> None:
        vision = config.vision
        width, self._heads = int(vision["hidden_size"]), int(vision["num_heads"])
        self._head_dim, self._merge, self._device = width // self._heads, config.merge_size, place.device
        self._embed = PatchEmbed(vision, width, place, bias=True)
        self._positions = place.empty(int(vision["num_position_embeddings"]), width)
        self._blocks = [self._block(config, width, place) for _ in range(int(vision["depth"]))]
        self._merger = self._make_merger(config, width, place, norm_joined=False)
        self._deep = {
            int(layer): self._make_merger(config, width, place, norm_joined=True)
            for layer in vision["deepstack_visual_indexes"]
        }

    def targets(self) -> dict[str, Target]:
        out = under("patch_embed", self._embed.targets()) | under("merger", self._merger.targets())
        out["pos_embed.weight"] = whole(self._positions)
        for i, block in enumerate(self._blocks):
            out |= under(f"blocks.{i}", block.targets())
        for i, merger in enumerate(self._deep.values()):
            out |= under(f"deepstack_merger_list.{i}", merger.targets())
        return out

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        x = self._embed(patches) + self._learned(grids)
        rotation = plane_rotation(grids, self._merge, self._head_dim, self._device)
        segments = frame_segments(grids, self._device)
        deep: dict[int, Tensor] = {}
        for i, block in enumerate(self._blocks):
            x = block(x, rotation, segments)
            if i in self._deep:
                deep[i] = self._deep[i](x)
        return torch.cat((self._merger(x), *(deep[i] for i in self._deep)), dim=1)

    def _learned(self, grids: Sequence[Grid]) -> Tensor:
        """Learned positions of patches in merge order [N, width]: the table's, interpolated in fp32."""
        side = math.isqrt(len(self._positions))
        frames: list[Tensor] = []
        for t, h, w in grids:
            cells, weights = (torch.from_numpy(x).to(self._device) for x in corners(h, w, self._merge, side))
            frame = sum(self._positions[cells[i]] * weights[i].unsqueeze(1) for i in range(4))
            assert isinstance(frame, Tensor)
            frames.append(frame.to(self._positions.dtype).repeat(t, 1))
        return torch.cat(frames)

    def _block(self, config: MediaConfig, width: int, place: Place) -> Block:
        inner, act = int(config.vision["intermediate_size"]), activation(config.vision["hidden_act"])
        norms = place.layer_norm(width, EPS), place.layer_norm(width, EPS)
        mlp = PlainMlp(width, inner, act, ("linear_fc1", "linear_fc2"), place)
        return Block(width, self._heads, norms, mlp, place)

    def _make_merger(self, config: MediaConfig, width: int, place: Place, *, norm_joined: bool) -> Merger:
        joined = config.merge_size**2
        norm = place.layer_norm(width * joined if norm_joined else width, EPS)
        return Merger(width, joined, config.hidden_size, norm, ("norm", "linear_fc1", "linear_fc2"), place)


@functools.lru_cache(maxsize=64)
def corners(h: int, w: int, merge: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where the patches of a frame lie in a table of side * side positions whose corners are the frame's corners.

    Returns:
        The four cells around each patch [4, h * w], and how much each counts.
    """
    (low_h, high_h, part_h), (low_w, high_w, part_w) = _along(h, side), _along(w, side)
    row, col = merge_order(h, w, merge).T
    cells = [r[row] * side + c[col] for r in (low_h, high_h) for c in (low_w, high_w)]
    weights = [r[row] * c[col] for r in (1 - part_h, part_h) for c in (1 - part_w, part_w)]
    return np.stack(cells), np.stack(weights)


def _along(size: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The cells before and after each of `size` patches in a row, and how far it is towards the one after."""
    at = np.arange(size, dtype=np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, side - 1), at - low.astype(np.float32)

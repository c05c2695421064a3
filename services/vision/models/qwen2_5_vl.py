"""Qwen2.5-VL's vision transformer: attention inside square windows, in some blocks inside frames; a gated MLP.

Tokens are computed window after window and put back into place at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.vision.models.attention import Segments
from services.vision.models.parts import Activation, Place, activation
from services.vision.models.qwen_vit import EPS, Block, Grid, Merger, PatchEmbed, frame_segments, plane_rotation
from shared.checkpoint.target import Target, under
from shared.media_config import MediaConfig


class Qwen2_5Vit:
    """See `VisionTransformer`."""

    def __init__(self, config: MediaConfig, place: Place) -> None:
        vision = config.vision
        width, self._heads = int(vision["hidden_size"]), int(vision["num_heads"])
        self._head_dim, self._merge, self._device = width // self._heads, config.merge_size, place.device
        self._window = int(vision["window_size"]) // config.merge_size // config.patch_size
        self._full = frozenset(vision["fullatt_block_indexes"])
        self._embed = PatchEmbed(vision, width, place, bias=False)
        self._blocks = [self._block(config, width, place) for _ in range(int(vision["depth"]))]
        norm, names = place.rms_norm(width, EPS), ("ln_q", "mlp.0", "mlp.2")
        self._merger = Merger(width, config.merge_size**2, config.hidden_size, norm, names, place)

    def targets(self) -> dict[str, Target]:
        out = under("patch_embed", self._embed.targets()) | under("merger", self._merger.targets())
        for i, block in enumerate(self._blocks):
            out |= under(f"blocks.{i}", block.targets())
        return out

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        order, lengths = batch_windows(grids, self._merge, self._window)
        tokens = torch.from_numpy(order).to(self._device)
        unit = self._merge**2
        places = (tokens.unsqueeze(1) * unit + torch.arange(unit, device=self._device)).flatten()
        x = self._embed(patches[places])
        rotation = plane_rotation(grids, self._merge, self._head_dim, self._device).ordered(places)
        frames, windows = frame_segments(grids, self._device), Segments(lengths, self._device)
        for i, block in enumerate(self._blocks):
            x = block(x, rotation, frames if i in self._full else windows)
        merged = self._merger(x)
        return torch.empty_like(merged).index_copy_(0, tokens, merged)

    def _block(self, config: MediaConfig, width: int, place: Place) -> Block:
        inner, act = int(config.vision["intermediate_size"]), activation(config.vision["hidden_act"])
        norms = place.rms_norm(width, EPS), place.rms_norm(width, EPS)
        return Block(width, self._heads, norms, _GatedMlp(width, inner, act, place), place)


class _GatedMlp:
    """See `Mlp`."""

    def __init__(self, width: int, inner: int, act: Activation, place: Place) -> None:
        self._gate, self._up = place.linear(width, inner), place.linear(width, inner)
        self._down, self._act = place.linear(inner, width), act

    def targets(self) -> dict[str, Target]:
        return (
            under("gate_proj", self._gate.targets())
            | under("up_proj", self._up.targets())
            | under("down_proj", self._down.targets())
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._down(self._act(self._gate(x)) * self._up(x))


def batch_windows(grids: Sequence[Grid], merge: int, window: int) -> tuple[NDArray[np.int64], list[int]]:
    """Windows of `window` x `window` tokens; smaller at the right and lower edge.

    Returns:
        Numbers of all tokens, window after window, and the patches in each window.
    """
    orders: list[NDArray[np.int64]] = []
    lengths: list[int] = []
    start = 0
    for t, h, w in grids:
        order, tokens = frame_windows(h // merge, w // merge, window)
        for _ in range(t):
            orders.append(order + start)
            start += len(order)
        lengths += [n * merge * merge for n in tokens] * t
    return np.concatenate(orders), lengths


@functools.lru_cache(maxsize=64)
def frame_windows(rows: int, cols: int, window: int) -> tuple[NDArray[np.int64], list[int]]:
    """Of one frame: its tokens window after window, and the tokens in each window."""
    row, col = np.indices((rows, cols)).reshape(2, -1)
    of_token = row // window * -(-cols // window) + col // window
    return np.argsort(of_token, kind="stable"), np.bincount(of_token).tolist()

"""Qwen2-VL's vision transformer: full attention inside frames, layer norms, a plain MLP."""

from __future__ import annotations

from collections.abc import Sequence

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
    plane_rotation,
)
from shared.checkpoint.target import Target, under
from shared.media_config import MediaConfig


class Qwen2Vit:
    """See `VisionTransformer`."""

    def __init__(self, config: MediaConfig, place: Place) -> None:
        vision = config.vision
        width, self._heads = int(vision["embed_dim"]), int(vision["num_heads"])
        self._head_dim, self._merge, self._device = width // self._heads, config.merge_size, place.device
        self._embed = PatchEmbed(vision, width, place, bias=False)
        self._blocks = [self._block(config, width, place) for _ in range(int(vision["depth"]))]
        norm, names = place.layer_norm(width, EPS), ("ln_q", "mlp.0", "mlp.2")
        self._merger = Merger(width, config.merge_size**2, config.hidden_size, norm, names, place)

    def targets(self) -> dict[str, Target]:
        out = under("patch_embed", self._embed.targets()) | under("merger", self._merger.targets())
        for i, block in enumerate(self._blocks):
            out |= under(f"blocks.{i}", block.targets())
        return out

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        x = self._embed(patches)
        rotation = plane_rotation(grids, self._merge, self._head_dim, self._device)
        segments = frame_segments(grids, self._device)
        for block in self._blocks:
            x = block(x, rotation, segments)
        return self._merger(x)

    def _block(self, config: MediaConfig, width: int, place: Place) -> Block:
        inner, act = int(width * config.vision["mlp_ratio"]), activation(config.vision["hidden_act"])
        norms = place.layer_norm(width, EPS), place.layer_norm(width, EPS)
        return Block(width, self._heads, norms, PlainMlp(width, inner, act, ("fc1", "fc2"), place), place)

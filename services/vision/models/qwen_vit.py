"""What the vision transformers of the Qwen families share: patches, positions, blocks, and how media are batched.

Patches are in merge order throughout: those of one token follow each other, row by row, and tokens are row by row.
Frames (pairs of them are joined) do not see each other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from services.vision.models.attention import Segments
from services.vision.models.encoder import chunks
from services.vision.models.parts import Activation, Norm, Place
from services.vision.processing.prepared import Prepared
from shared.checkpoint.target import ALL, Target, under
from shared.media_config import MediaConfig, PixelScale

EPS = 1e-6
Grid = tuple[int, int, int]
"""(t, h, w): joined frames, and patches of each of them down and across."""


class VisionTransformer(Protocol):
    """The part of the encoder that differs between the families."""

    def targets(self) -> dict[str, Target]:
        """Names inside the transformer to memory."""

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Embeddings [tokens, width] of patches [N, C * T * p * p] of items one after another."""


class QwenEncoder:
    """See `Encoder`."""

    def __init__(self, config: MediaConfig, place: Place, transformer: VisionTransformer, max_patches: int) -> None:
        self.width, self.dtype = config.width, place.dtype
        self._config, self._device, self._max_patches = config, place.device, max_patches
        self._transformer = transformer

    def targets(self) -> dict[str, Target]:
        return under("visual", self._transformer.targets())

    def skips(self, name: str) -> bool:
        return False

    @torch.inference_mode()
    def encode(self, items: Sequence[Prepared]) -> list[Tensor]:
        grids = [self._grid(item) for item in items]
        parts: list[list[Tensor]] = [[] for _ in items]
        for chunk in chunks([(t, h * w) for t, h, w in grids], self._max_patches):
            sizes = [(part.count, *grids[part.item][1:]) for part in chunk]
            patches = torch.cat([self._patches(items[part.item], part.start, part.count) for part in chunk])
            merged = self._config.merge_size**2
            out = self._transformer.forward(patches.to(self.dtype), sizes)
            of_parts = torch.split(out, [t * h * w // merged for t, h, w in sizes])
            for part, embeddings in zip(chunk, of_parts, strict=True):
                parts[part.item].append(embeddings)
        return [torch.cat(of_item) for of_item in parts]

    def _grid(self, item: Prepared) -> Grid:
        t, h, w = item.grid
        return t, h * self._config.merge_size, w * self._config.merge_size

    def _patches(self, item: Prepared, start: int, count: int) -> Tensor:
        """Of joined frames: [N, C * T * p * p] fp32."""
        config = self._config
        joined = config.temporal_patch_size
        frames = torch.from_numpy(item.pixels[start * joined : (start + count) * joined]).to(self._device)
        if missing := count * joined - len(frames):
            frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
        return flat_patches(frames, joined, config.patch_size, config.merge_size, config.pixels)


def flat_patches(frames: Tensor, joined: int, patch: int, merge: int, scale: PixelScale) -> Tensor:
    """frames [F, height, width, 3] uint8 -> scaled patches [F / joined * h * w, 3 * joined * patch * patch] fp32."""
    height, width = frames.shape[1:3]
    blocks = (height // (merge * patch), merge, patch, width // (merge * patch), merge, patch)
    cells = frames.view(-1, joined, *blocks, 3)  # [t, T, h, m, p, w, m, p, C]
    cells = cells.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3, joined * patch * patch).float()
    mean, std = (torch.tensor(values, device=frames.device).unsqueeze(1) for values in (scale.mean, scale.std))
    return cells.mul_(scale.factor).sub_(mean).div_(std).flatten(1)


class PatchEmbed:
    """The convolution over non-overlapping patches: a product. Checkpoints have its kernel in 5 dimensions."""

    def __init__(self, vision: dict[str, Any], width: int, place: Place, *, bias: bool) -> None:
        patch = int(vision["patch_size"])
        self._kernel = (int(vision["in_channels"]), int(vision["temporal_patch_size"]), patch, patch)
        self._proj = place.linear(int(np.prod(self._kernel)), width, bias=bias)

    def __call__(self, patches: Tensor) -> Tensor:
        return self._proj(patches)

    def targets(self) -> dict[str, Target]:
        kernel = self._proj.weight.view(-1, *self._kernel)
        out = under("proj", self._proj.targets())
        return out | {"proj.weight": Target(kernel, tuple(kernel.shape), (ALL,) * 5)}


class Mlp(Protocol):
    """What a block does to each patch alone: [N, width] -> [N, width]"""

    def __call__(self, x: Tensor) -> Tensor: ...
    def targets(self) -> dict[str, Target]: ...


class PlainMlp:
    """Product, activation, product."""

    def __init__(self, width: int, inner: int, act: Activation, names: tuple[str, str], place: Place) -> None:
        """names: of the products in checkpoints"""
        self._fc1, self._fc2 = place.linear(width, inner), place.linear(inner, width)
        self._act, self._names = act, names

    def targets(self) -> dict[str, Target]:
        return under(self._names[0], self._fc1.targets()) | under(self._names[1], self._fc2.targets())

    def __call__(self, x: Tensor) -> Tensor:
        return self._fc2(self._act(self._fc1(x)))


class Block:
    """Norm, attention, norm, MLP."""

    def __init__(self, width: int, heads: int, norms: tuple[Norm, Norm], mlp: Mlp, place: Place) -> None:
        self._heads, (self._norm1, self._norm2), self._mlp = heads, norms, mlp
        self._qkv, self._proj = place.linear(width, 3 * width), place.linear(width, width)

    def targets(self) -> dict[str, Target]:
        return (
            under("norm1", self._norm1.targets())
            | under("norm2", self._norm2.targets())
            | under("attn.qkv", self._qkv.targets())
            | under("attn.proj", self._proj.targets())
            | under("mlp", self._mlp.targets())
        )

    def __call__(self, x: Tensor, rotation: Rotation, segments: Segments) -> Tensor:
        """x [N, width]"""
        qkv = self._qkv(self._norm1(x)).view(len(x), 3, self._heads, -1)  # [N, 3, H, D]
        rotation.turn_(qkv)
        x = x + self._proj(segments.attend(*qkv.unbind(1)))
        return x + self._mlp(self._norm2(x))


class Rotation:
    """Rotary positions in a plane: a quarter of a head turns by the row, a quarter by the column, twice."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        """[N, D / 2] fp32 each"""
        self._cos, self._sin = cos, sin

    def turn_(self, qkv: Tensor) -> None:
        """Turn the queries and keys of qkv [N, 3, H, D] in place; computed in fp32."""
        if qkv.is_cuda:
            from services.vision.kernels.rotate_heads import rotate_heads_

            rotate_heads_(qkv, self._cos, self._sin)
            return
        cos, sin = (part[:, None, None] for part in (self._cos, self._sin))
        first, second = qkv[:, :2].float().chunk(2, dim=3)
        qkv[:, :2] = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=3)

    def ordered(self, order: Tensor) -> Rotation:
        """With the patches in another order."""
        return Rotation(self._cos[order], self._sin[order])


def plane_rotation(grids: Sequence[Grid], merge: int, head_dim: int, device: torch.device) -> Rotation:
    """Of patches in merge order."""
    places = [np.tile(merge_order(h, w, merge), (t, 1)) for t, h, w in grids]
    at = torch.from_numpy(np.concatenate(places)).to(device)  # [N, 2]
    half = head_dim // 2
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, half, 2, dtype=torch.float32, device=device) / half))
    angles = (at.unsqueeze(2) * frequencies).flatten(1)
    return Rotation(angles.cos(), angles.sin())


@functools.lru_cache(maxsize=64)
def merge_order(h: int, w: int, merge: int) -> NDArray[np.int64]:
    """Row and column of each patch of a frame in merge order: [h * w, 2]."""
    blocks = np.indices((h, w)).reshape(2, h // merge, merge, w // merge, merge)
    return blocks.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def frame_segments(grids: Sequence[Grid], device: torch.device) -> Segments:
    """Every joined frame for itself."""
    return Segments([h * w for t, h, w in grids for _ in range(t)], device)


class Merger:
    """Joins the patches of a token to one embedding: norm of each (or of all), two products."""

    def __init__(
        self, width: int, joined: int, out: int, norm: Norm, names: tuple[str, str, str], place: Place
    ) -> None:
        """
        Args:
            width: of a patch.
            joined: patches of a token.
            norm: of a patch, or of all patches of a token.
            names: in checkpoints, of the norm and of the products.
        """
        self._width = width * joined
        self._norm, self._names = norm, names
        self._fc1, self._fc2 = place.linear(self._width, self._width), place.linear(self._width, out)

    def targets(self) -> dict[str, Target]:
        out: dict[str, Target] = {}
        for name, part in zip(self._names, (self._norm, self._fc1, self._fc2), strict=True):
            out |= under(name, part.targets())
        return out

    def __call__(self, x: Tensor) -> Tensor:
        """[N, width] -> [N / joined, out]"""
        x = self._norm(x.view(-1, len(self._norm.weight))).view(-1, self._width)
        return self._fc2(F.gelu(self._fc1(x)))

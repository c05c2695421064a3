"""LLaVA-1.5 and LLaVA-NeXT: CLIP's features through a projector; NeXT puts those of a canvas's tiles together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.vision.models.clip import ClipTower, square_patches
from services.vision.models.encoder import chunks
from services.vision.models.parts import Place, activation
from services.vision.processing.prepared import Canvas, Prepared
from shared.checkpoint.target import Target, under, whole
from shared.media_config import LlavaSettings, MediaConfig

_TOWER = "vision_tower."


class LlavaEncoder:
    """See `Encoder`."""

    def __init__(self, config: MediaConfig, place: Place, max_patches: int) -> None:
        assert config.llava is not None
        self.width, self.dtype = config.width, place.dtype
        self._config, self._llava, self._device = config, config.llava, place.device
        self._max_patches = max_patches
        self._cells = int(config.vision["image_size"]) // config.patch_size
        self._tower = ClipTower(config.vision, self._llava.feature_layers, place)
        features = int(config.vision["hidden_size"]) * len(self._llava.feature_layers)
        self._projector = _Projector(self._llava, features, config.hidden_size, place)
        self._newline = place.empty(config.hidden_size) if config.family == "llava_next" else None

    def targets(self) -> dict[str, Target]:
        out = under("vision_tower", self._tower.targets()) | under("projector", self._projector.targets())
        return out if self._newline is None else out | {"image_newline": whole(self._newline)}

    def skips(self, name: str) -> bool:
        return name.startswith(_TOWER) and self._tower.skips(name.removeprefix(_TOWER))

    @torch.inference_mode()
    def encode(self, items: Sequence[Prepared]) -> list[Tensor]:
        squares: list[list[Tensor]] = [[] for _ in items]
        for chunk in chunks([(len(item.pixels), self._cells**2) for item in items], self._max_patches):
            pixels = [items[part.item].pixels[part.start : part.start + part.count] for part in chunk]
            features = self._features(torch.cat([torch.from_numpy(p) for p in pixels]).to(self._device))
            of_parts = torch.split(features, [part.count for part in chunk])
            for part, of_part in zip(chunk, of_parts, strict=True):
                squares[part.item].append(of_part)
        return [self._packed(torch.cat(of_item), item.canvas) for of_item, item in zip(squares, items, strict=True)]

    def _features(self, pixels: Tensor) -> Tensor:
        """[B, side, side, 3] uint8 -> [B, tokens, hidden]"""
        patches = square_patches(pixels, self._config.patch_size, self._config.pixels)
        features = self._tower.forward(patches.to(self.dtype))
        return self._projector(features if self._llava.keep_class_token else features[:, 1:])

    def _packed(self, squares: Tensor, canvas: Canvas | None) -> Tensor:
        """Embeddings [tokens, hidden] of an item whose squares have the features [S, n, hidden]."""
        if self._newline is None:
            return squares[0]
        if canvas is None:
            return torch.cat((squares[0], self._newline.unsqueeze(0)))
        tiles = squares[1:].view(canvas.rows, canvas.cols, self._cells, self._cells, self.width)
        plane = tiles.transpose(1, 2).flatten(0, 1).flatten(1, 2)  # [rows * cells, cols * cells, hidden]
        tall, wide = plane.shape[:2]
        plane = plane[canvas.pad_rows : tall - canvas.pad_rows, canvas.pad_cols : wide - canvas.pad_cols]
        lines = torch.cat((plane, self._newline.expand(len(plane), 1, -1)), dim=1)
        return torch.cat((squares[0], lines.flatten(0, 1)))


class _Projector:
    """Products with an activation between them."""

    def __init__(self, llava: LlavaSettings, inputs: int, hidden: int, place: Place) -> None:
        self._act = activation(llava.projector_act)
        sizes = [inputs] + [hidden] * (llava.projector_layers - 1)
        self._products = [place.linear(size, hidden, bias=llava.projector_bias) for size in sizes]

    def targets(self) -> dict[str, Target]:
        out: dict[str, Target] = {}
        for i, product in enumerate(self._products):
            out |= under(str(2 * i), product.targets())
        return out

    def __call__(self, x: Tensor) -> Tensor:
        for product in self._products[:-1]:
            x = self._act(product(x))
        return self._products[-1](x)

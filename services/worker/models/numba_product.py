"""Products with weights of whole numbers as CPU kernels, in float32. Imported only where numba is there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.worker.cpu_kernels.int_product import expand4, expand8, int4_product, int8_product
from services.worker.cpu_kernels.vectors import LANES
from services.worker.models.group_offsets import add_offsets
from services.worker.quantization.weights import IntWeight

MOST_TOKENS = 16
"""Above, a dense product with expanded tiles of the weight is faster."""
TILE_WEIGHTS = 1 << 20
"""Fewer make poor products, more leave the caches before they are used."""


class NumbaIntProduct:
    """The weight is this object's own from now on."""

    def __init__(self, weight: IntWeight) -> None:
        self._width, self._per_row, self._order = weight.shape[0], 8 // weight.bits, weight.order
        codes, scales, offsets = weight.codes, weight.scales, weight.offsets
        if weight.bits == 4:  # two features to a byte
            assert offsets is not None
            if self._width % 2:
                codes, scales, offsets = (F.pad(t, (0, 0, 0, 1)) for t in (codes, scales, offsets))
            codes = codes[0::2] | codes[1::2] << 4
        self._codes, self._scales = codes.contiguous().numpy(), scales.contiguous().numpy()
        self._offsets = None if offsets is None else offsets.contiguous().numpy()
        self._group = codes.shape[1] // scales.shape[1]
        self.nbytes = sum(array.nbytes for array in (self._codes, self._scales, self._offsets) if array is not None)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        few = x.shape[0] <= MOST_TOKENS and self._group % LANES == 0
        out = (self._few if few else self._many)(x)[:, : self._width]
        if self._per_row == 1 and self._offsets is not None:
            add_offsets(out, x, torch.from_numpy(self._offsets))
        return out if bias is None else out.add_(bias)

    def _few(self, x: Tensor) -> Tensor:
        out = x.new_empty((x.shape[0], len(self._scales)))
        if self._per_row == 1:
            int8_product(x.numpy(), self._codes, self._scales, out.numpy())
        else:
            int4_product(x.numpy(), self._codes, self._scales, self._offsets, out.numpy())
        return out

    def _many(self, x: Tensor) -> Tensor:
        depth, width = x.shape[1], len(self._scales)
        out = x.new_empty((len(x), width))
        rows = max(1, TILE_WEIGHTS // (depth * self._per_row)) * self._per_row
        tile = x.new_empty((min(rows, width), depth))
        for start in range(0, width, rows):
            weight = tile[: min(rows, width - start)]
            self._expand(start, weight)
            torch.mm(x, weight.T, out=out[:, start : start + len(weight)])
        return out

    def _expand(self, start: int, weight: Tensor) -> None:
        """Weights of the features from `start` on to `weight` [features, K]; of 8 bits, without offsets."""
        part, groups = slice(start, start + len(weight)), self._scales.shape[1]
        codes = self._codes[start // self._per_row :][: len(weight) // self._per_row]
        grouped = codes.reshape(len(codes), groups, -1)
        if self._per_row == 1:
            expand8(grouped, self._scales[part], weight.view(len(weight), groups, -1).numpy())
            return
        assert self._offsets is not None
        scales, offsets = (array[part].reshape(-1, 2, groups) for array in (self._scales, self._offsets))
        expand4(grouped, scales, offsets, weight.view(len(codes), 2, groups, -1).numpy())

"""Products with weights of whole numbers as CPU kernels, in float32. Imported only where numba is there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.worker.cpu_kernels.int_product import expand4, expand8, int4_product, int8_product
from services.worker.quantization.weights import IntWeight

MOST_TOKENS = 8
"""Above, a dense product with expanded tiles of the weight is faster."""
TILE_WEIGHTS = 1 << 18
"""They stay in a core's cache until they are used."""


class NumbaIntProduct:
    """The weight is this object's own from now on."""

    def __init__(self, weight: IntWeight) -> None:
        self._width, self._bits, self._order = weight.shape[0], weight.bits, weight.order
        codes, scales, offsets = weight.codes, weight.scales, weight.offsets
        groups = scales.shape[1]
        if self._bits == 4:
            assert offsets is not None
            if self._width % 2:  # two features to a byte
                codes, scales, offsets = (F.pad(t, (0, 0, 0, 1)) for t in (codes, scales, offsets))
            codes = codes[0::2] | codes[1::2] << 4
            scales, offsets = (t.reshape(-1, 2, groups) for t in (scales, offsets))
        self._codes = codes.contiguous().view(len(codes), groups, -1)  # [N / 2 or N, G, group]
        self._scales = scales.contiguous()
        self._offsets = None if offsets is None else offsets.contiguous()
        self.nbytes = sum(t.nbytes for t in (self._codes, self._scales, self._offsets) if t is not None)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        out = (self._few if len(x) <= MOST_TOKENS else self._many)(x)[:, : self._width]
        return out if bias is None else out.add_(bias)

    def _few(self, x: Tensor) -> Tensor:
        grouped = x.view(len(x), *self._codes.shape[1:]).numpy()
        out = x.new_empty((len(x), len(self._codes) * (2 if self._bits == 4 else 1)))
        if self._offsets is None:
            int8_product(grouped, self._codes.numpy(), self._scales.numpy(), out.numpy())
        else:
            int4_product(grouped, self._codes.numpy(), self._scales.numpy(), self._offsets.numpy(), out.numpy())
        return out

    def _many(self, x: Tensor) -> Tensor:
        depth, per_row = x.shape[1], 2 if self._bits == 4 else 1
        out = x.new_empty((len(x), len(self._codes) * per_row))
        rows = max(1, TILE_WEIGHTS // (depth * per_row))
        tile = x.new_empty((rows * per_row, depth))
        for start in range(0, len(self._codes), rows):
            part = slice(start, start + rows)
            codes, scales = self._codes[part].numpy(), self._scales[part].numpy()
            weight = tile[: len(codes) * per_row]
            if self._offsets is None:
                expand8(codes, scales, weight.view(codes.shape).numpy())
            else:
                shape = (len(codes), 2, *codes.shape[1:])
                expand4(codes, scales, self._offsets[part].numpy(), weight.view(shape).numpy())
            torch.mm(x, weight.T, out=out[:, start * per_row : start * per_row + len(weight)])
        return out

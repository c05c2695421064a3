"""Keys and values of all tokens, by slot. Knows nothing of rows, requests or models beyond their shapes.

Slot = page * page_size + offset. Page 0 belongs to the worker: padding tokens write there and nothing reads it
unmasked.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class KvPool:
    """One tensor per layer. Written by attention backends only; lives as long as the engine.

    K and V of a token lie side by side: one gather fetches both.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate pages 1..num_pages and page 0."""
        self.num_pages, self.page_size = num_pages, page_size
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.device, self.dtype = device, dtype
        slots = (num_pages + 1) * page_size
        shape = (slots, 2, num_kv_heads, head_dim)
        self.layers = [_zeros(shape, dtype, device) for _ in range(num_layers)]  # [slots, 2, G, D]
        self._pages = [layer.view(num_pages + 1, -1) for layer in self.layers]  # [P, page_size * 2 * G * D]

    @staticmethod
    def slot_bytes(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one token over all layers."""
        return 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize

    def write(self, layer: int, slots: Tensor, kv: Tensor) -> None:
        """Store `kv` [T, 2, G, D] at `slots` [T] int64."""
        self.layers[layer].index_copy_(0, slots, kv)

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views [slots, G, D] each, for kernels that take strides."""
        return self.layers[layer][:, 0], self.layers[layer][:, 1]

    def pages(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views [P, page_size, G, D] each, for kernels that take strides."""
        shape = (self.num_pages + 1, self.page_size, 2, self.num_kv_heads, self.head_dim)
        paged = self.layers[layer].view(shape)
        return paged[:, :, 0], paged[:, :, 1]

    def gather_buffer(self, pages: int) -> Tensor:
        """Memory for `gather` of up to `pages` pages: [pages, page_size * 2 * G * D]."""
        return torch.empty((pages, self._pages[0].shape[1]), dtype=self.dtype, device=self.device)

    def gather(self, layer: int, pages: Tensor, buffer: Tensor) -> Tensor:
        """Copy `pages` [N] into `buffer`; returns it as [N * page_size, 2, G, D]."""
        out = torch.index_select(self._pages[layer], 0, pages, out=buffer[: pages.shape[0]])
        return out.view(-1, 2, self.num_kv_heads, self.head_dim)

    def run(self, layer: int, first_page: int, tokens: int) -> Tensor:
        """View of `tokens` slots that lie one after the other from `first_page` on: [tokens, 2, G, D]."""
        start = first_page * self.page_size
        return self.layers[layer][start : start + tokens]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose memory is really there: the first requests pay no page faults (measured: 0.5 s of them), and too
    little memory shows at start. On CPU through numpy, which asks the kernel for huge pages."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    raw.fill(0)
    return torch.from_numpy(raw).view(dtype).view(shape)

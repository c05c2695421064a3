"""Paged attention on CPU: decode rows by a kernel that reads the pool in place, extend rows by PyTorch operators.

Rotary embedding and the KV write are one kernel for all rows. A step is planned on the host; a layer is then a call
of each kernel. Imported only where numba is there (`backend.py`); fp32 only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.worker.attention.paged_keys import gather_buffer
from services.worker.attention.torch_extend import attend_extend, plan_extends
from services.worker.batch import Batch
from services.worker.cpu_kernels.decode_attention import decode_kernel, parts_for
from services.worker.cpu_kernels.jit import most_threads, use_threads
from services.worker.cpu_kernels.rotary import rotate_and_store
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.models.rope import QkNorm, Rotation
from services.worker.rows import Rows

Array = npt.NDArray[Any]
_NO_WEIGHT = np.zeros(0, np.float32)
_NO_NORM = (False, _NO_WEIGHT, _NO_WEIGHT, np.float32(0.0))


class NumbaAttention:
    """Stateless between steps. Made and used by one thread, whose kernels use as many threads as torch's operators."""

    name = "numba"

    def __init__(self, pool: KvPool, rows: Rows, windows: list[int | None], num_q_heads: int) -> None:
        self.pool, self.rows, self.num_q_heads = pool, rows, num_q_heads
        self.windows, self.kinds = windows, sorted(set(windows), key=lambda w: w or 0)
        self.layers = [layer.numpy() for layer in pool.layers]
        self.attend_decode = decode_kernel(pool.head_dim)
        self.threads = most_threads()
        use_threads(self.threads)

    def prepare(self, batch: Batch) -> Attend:
        return _Step(self, batch)

    def fixed_step(self, size: int) -> FixedStep:
        """Attention of `size` decode rows that a recording may hold."""
        return FixedStep(self, size)

    def turn_and_store(
        self, layer: int, qkv: Tensor, cos: Array, sin: Array, slots: Array, qk_norm: QkNorm | None
    ) -> None:
        norm = _NO_NORM if qk_norm is None else (True, qk_norm[0].numpy(), qk_norm[1].numpy(), np.float32(qk_norm[2]))
        rotate_and_store(qkv.numpy(), cos, sin, self.layers[layer], slots, self.num_q_heads, *norm)

    def cuts(self, seq_lens: Array) -> dict[int | None, Array]:
        """For each window, the parts to cut rows of these lengths into."""
        return {window: np.array([parts_for(seq_lens, window or 0, self.threads)]) for window in self.kinds}


class FixedStep:
    """Attention of one step of decode rows, whose inputs stay where they are: set them, then call it for each layer."""

    def __init__(self, to: NumbaAttention, size: int) -> None:
        dim = to.pool.head_dim
        self._to, self._out = to, torch.zeros((size, to.num_q_heads, dim))
        self._cos, self._sin = np.zeros((2, size, dim), np.float32)
        self._rows, self._seq_lens, self._slots = np.zeros((3, size), np.int64)
        self._seq_lens[:] = 1
        self._cuts = to.cuts(self._seq_lens)

    def set(self, rotation: Rotation, rows: Array, seq_lens: Array, slots: Array) -> None:
        """
        Args:
            rotation: of all rows' new tokens.
            rows: [R] of the page table.
            seq_lens: [R] tokens that each sees, its new one included.
            slots: [R] where keys and values of the new tokens go.
        """
        for into, values in zip((self._cos, self._sin), rotation.angles, strict=True):
            np.copyto(into, values.view(into.shape).numpy())
        self._rows[:], self._seq_lens[:], self._slots[:] = rows, seq_lens, slots
        for window, cut in self._to.cuts(seq_lens).items():
            self._cuts[window][:] = cut

    def __call__(self, layer: int, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> Tensor:
        to, window = self._to, self._to.windows[layer]
        to.turn_and_store(layer, qkv, self._cos, self._sin, self._slots, qk_norm)
        to.attend_decode(
            qkv.numpy(), to.layers[layer], to.rows.page_table.host, self._rows, self._seq_lens, self._out.numpy(), 0,
            to.pool.page_size, window or 0, self._cuts[window],
        )  # fmt: skip
        return self._out.flatten(1)


class _Step:
    """What `prepare` returns: called once per layer."""

    def __init__(self, to: NumbaAttention, batch: Batch) -> None:
        self._to, self._batch, self._slots = to, batch, batch.slots.numpy()
        self._extends = list(plan_extends(to.pool, to.rows, batch, to.kinds))
        self._buffer = gather_buffer(to.pool, (extend.keys for extend in self._extends))
        self._cuts = to.cuts(batch.decode_lens)
        # One buffer for all layers: each is consumed before the next. Padding stays zero.
        self._out = torch.zeros((batch.num_tokens, to.num_q_heads, to.pool.head_dim))

    def __call__(self, layer: int, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> Tensor:
        tokens, heads, dim = self._out.shape
        cos, sin = (angle.view(tokens, dim).numpy() for angle in rotation.angles)
        self._to.turn_and_store(layer, qkv, cos, sin, self._slots, qk_norm)
        if self._extends:
            self._extend(layer, qkv)
        if len(self._batch.decode_rows):
            self._decode(layer, qkv)
        return self._out.view(tokens, heads * dim)

    def _extend(self, layer: int, qkv: Tensor) -> None:
        to, (tokens, heads, dim) = self._to, self._out.shape
        parts = qkv.view(tokens, -1, dim)
        q, kv = parts[:, :heads], parts[:, heads:].view(tokens, 2, -1, dim)
        for extend in self._extends:
            attend_extend(to.pool, layer, extend, to.windows[layer], q, kv, self._out, self._buffer)

    def _decode(self, layer: int, qkv: Tensor) -> None:
        to, batch, window = self._to, self._batch, self._to.windows[layer]
        to.attend_decode(
            qkv.numpy(), to.layers[layer], to.rows.page_table.host, batch.decode_rows, batch.decode_lens,
            self._out.numpy(), batch.num_extend_tokens, to.pool.page_size, window or 0, self._cuts[window],
        )  # fmt: skip

"""Paged attention from Triton kernels: decode rows by split attention, extend rows by tiles of queries.

A step is planned on the host with one copy to the device (rows, lengths, bounds of the queries) and a few tiny
launches; a layer is then one launch that rotates and stores and one or two that attend, and nothing waits. Imported
only where Triton is there (`backend.py`). Also runs under Triton's interpreter, on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from services.worker.batch import Batch
from services.worker.kernels.extend_attention import extend_attention
from services.worker.kernels.extend_plan import ExtendPlan, extend_config, plan_extend
from services.worker.kernels.rotary import rotate_and_store
from services.worker.kernels.split_attention import split_attention
from services.worker.kernels.split_plan import SplitWorkspace, plan_split, split_workspace
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.models.rope import QkNorm, Rotation
from services.worker.rows import Rows
from services.worker.upload import upload_all


class TritonAttention:
    """Keeps the workspaces of decode, one per kind of window; steps must be executed in order."""

    name = "triton"

    def __init__(self, pool: KvPool, rows: Rows, windows: list[int | None], num_q_heads: int) -> None:
        self.pool, self.page_table, self.num_q_heads = pool, rows.page_table.device, num_q_heads
        self.windows = [window or 0 for window in windows]
        self.workspaces = {
            window: split_workspace(
                rows.max_rows, num_q_heads, pool.num_kv_heads, pool.head_dim, pool.dtype, pool.device, window=window
            )
            for window in set(self.windows)
        }
        self.scale = pool.head_dim**-0.5

    def prepare(self, batch: Batch) -> Attend:
        lens = batch.ext_lens
        ext_rows, ext_seen, cu_q, decode_rows, decode_seen = upload_all(
            [np.asarray(part, np.int32) for part in (
                batch.ext_rows, batch.ext_starts + lens, np.concatenate(([0], np.cumsum(lens))),
                batch.decode_rows, batch.decode_lens,
            )],
            self.pool.device,
        )  # fmt: skip
        extend = None
        if len(lens):
            group, tokens = self.num_q_heads // self.pool.num_kv_heads, batch.num_extend_tokens
            config = extend_config(self.pool.head_dim, self.pool.dtype.itemsize, tokens * group // len(lens))
            extend = _Extend(ext_rows, ext_seen, cu_q, plan_extend(cu_q, tokens, group, config))
        decode = None
        if len(decode_rows):
            for workspace in self.workspaces.values():
                plan_split(workspace, decode_seen)
            decode = _Decode(decode_rows, decode_seen, batch.num_extend_tokens)
        parts = [part for part in (extend, decode) if part is not None]
        padded = batch.num_tokens > batch.num_extend_tokens + len(decode_rows)
        return _Step(self, batch.slots, parts, padded=padded)

    def attend_decode(self, rows: Tensor, seq_lens: Tensor, slots: Tensor) -> Attend:
        """See `decode_program.DeviceAttention`."""
        for workspace in self.workspaces.values():
            plan_split(workspace, seq_lens)
        return _Step(self, slots, [_Decode(rows, seq_lens, 0)], padded=False)


class _Extend:
    """The extend rows of a step: the first tokens of the batch."""

    def __init__(self, rows: Tensor, seq_lens: Tensor, cu_q: Tensor, plan: ExtendPlan) -> None:
        self._rows, self._seq_lens, self._cu_q, self._plan = rows, seq_lens, cu_q, plan

    def __call__(self, to: TritonAttention, window: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        extend_attention(
            q, k, v, to.page_table, self._rows, self._seq_lens, self._cu_q, self._plan, out,
            page_size=to.pool.page_size, scale=to.scale, window=window,
        )  # fmt: skip


class _Decode:
    """The decode rows of a step: one token each, from `first` on."""

    def __init__(self, rows: Tensor, seq_lens: Tensor, first: int) -> None:
        self._rows, self._seq_lens = rows, seq_lens
        self._tokens = slice(first, first + len(rows))

    def __call__(self, to: TritonAttention, window: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        workspace: SplitWorkspace = to.workspaces[window]
        split_attention(
            q[self._tokens], k, v, to.page_table, self._rows, self._seq_lens, workspace, out[self._tokens],
            page_size=to.pool.page_size, scale=to.scale,
        )  # fmt: skip


class _Step:
    """What `prepare` returns: called once per layer."""

    def __init__(self, to: TritonAttention, slots: Tensor, parts: Sequence[_Extend | _Decode], *, padded: bool) -> None:
        """
        Args:
            padded: some tokens belong to no part; they get zeros.
        """
        self._to, self._slots, self._parts = to, slots, parts
        make = torch.zeros if padded else torch.empty
        # One buffer for all layers: each is consumed before the next.
        self._out = make((len(slots), to.num_q_heads, to.pool.head_dim), dtype=to.pool.dtype, device=to.pool.device)

    def __call__(self, layer: int, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> Tensor:
        to, (tokens, heads, dim) = self._to, self._out.shape
        k, v = to.pool.keys_and_values(layer)
        rotate_and_store(qkv, rotation.positions, rotation.table, k, v, self._slots, heads, qk_norm)
        q = qkv[:, : heads * dim].view(tokens, heads, dim)
        for attend in self._parts:
            attend(to, to.windows[layer], q, k, v, self._out)
        return self._out.view(tokens, heads * dim)

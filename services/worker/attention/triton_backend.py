"""Paged attention from Triton kernels: decode rows by split attention, extend rows by tiles of queries.

A step is planned on the host with one copy to the device (rows, lengths, bounds of the queries) and a few tiny
launches; a layer is then one launch that rotates and stores and a few that attend, and nothing waits. Decode rows that
share a long prefix attend it together. Imported only where Triton is there (`backend.py`). Also runs under Triton's
interpreter, on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from services.worker.attention.device_plans import MixedPlan, SharedPlan
from services.worker.attention.shared_prefix import SharedPrefixes, find_shared
from services.worker.batch import Batch
from services.worker.kernels.extend_attention import extend_attention
from services.worker.kernels.extend_plan import ExtendPlan, extend_config, plan_extend
from services.worker.kernels.rotary import rotate_and_store
from services.worker.kernels.shared_attention import (
    SHARED_BLOCK,
    Sharing,
    max_members,
    shared_attention,
    shared_workspace,
)
from services.worker.kernels.split_attention import split_attention
from services.worker.kernels.split_plan import plan_split, split_workspace
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.models.rope import QkNorm, Rotation
from services.worker.rows import I64, Rows
from services.worker.upload import upload_all

MIXED_ROWS_EXPECTED = 4
"""Extend rows that a mixed step of fixed shape is tuned for."""
Part = Callable[[int, Tensor, Tensor], None]
"""Some tokens of a step, planned: layer, queries [T, H, D] and results [T, H, D] of the whole step."""


class TritonAttention:
    """Keeps the workspaces of decode, one per kind of window; steps must be executed in order."""

    name = "triton"

    def __init__(
        self, pool: KvPool, rows: Rows, windows: list[int | None], num_q_heads: int, dtype: torch.dtype
    ) -> None:
        """
        Args:
            dtype: of queries and results; the pool may keep keys and values in another.
        """
        self.dtype = dtype
        self.pool, self.page_table, self.num_q_heads = pool, rows.page_table.device, num_q_heads
        self._rows = rows
        self.windows = [window or 0 for window in windows]
        self.workspaces = {
            window: split_workspace(
                rows.max_rows, num_q_heads, pool.num_kv_heads, pool.head_dim, pool.dtype, pool.device, window=window
            )
            for window in set(self.windows)
        }
        self.scale = pool.head_dim**-0.5
        self.most_members = max_members(num_q_heads, pool.num_kv_heads) if 0 in self.windows else 0
        """Rows that may attend a prefix together; fewer than 2 = none."""
        self.shared = shared_workspace(
            rows.max_rows, num_q_heads, pool.num_kv_heads, pool.head_dim, pool.dtype, pool.device
        )

    def share_among(self, members: int) -> None:
        """Attend prefixes together for at most so many rows."""
        self.most_members = min(members, self.most_members)

    def find_shared(self, rows: I64) -> SharedPrefixes | None:
        """The prefixes that a batch of these rows had better attend together."""
        return find_shared(
            self._rows.page_table.host, rows, self._rows.lengths[rows], page_size=self.pool.page_size,
            most_members=self.most_members, multiple=max(SHARED_BLOCK, self.pool.page_size),
        )  # fmt: skip

    def prepare(self, batch: Batch) -> Attend:
        parts: list[Part] = []
        if len(batch.ext_rows):
            parts.append(self.plan_extends(batch))
        if len(batch.decode_rows):
            parts.append(self.plan_decodes(batch))
        padded = batch.num_tokens > batch.num_extend_tokens + len(batch.decode_rows)
        return Step(self, batch.slots, parts, padded=padded)

    def plan_extends(self, batch: Batch) -> Part:
        """The extend rows of a step, of which there are some."""
        lens, tokens = batch.ext_lens, batch.num_extend_tokens
        group = self.num_q_heads // self.pool.num_kv_heads
        rows, seen, cu_q = self._upload(batch.ext_rows, batch.ext_starts + lens, np.concatenate(([0], np.cumsum(lens))))
        config = extend_config(self.pool.head_dim, self.pool.dtype.itemsize, tokens * group // len(lens))
        return _Extend(self, rows, seen, cu_q, plan_extend(cu_q, tokens, group, config))

    def plan_decodes(self, batch: Batch) -> Part:
        """The decode rows of a step, of which there are some."""
        count, first = len(batch.decode_rows), batch.num_extend_tokens
        sharing, found = None, self.find_shared(batch.decode_rows)
        if found is not None:
            plan = SharedPlan(count, self.pool.device)
            plan.set(found, batch.decode_rows)
            sharing = plan.first(count)
        rows, seen = self._upload(batch.decode_rows, batch.decode_lens)
        self._plan_decode(seen, sharing)
        return _Decode(self, rows, seen, slice(first, first + count), sharing=sharing)

    def _upload(self, *arrays: I64) -> tuple[Tensor, ...]:
        """As int32, in one copy."""
        return upload_all([array.astype(np.int32) for array in arrays], self.pool.device)

    def attend_mixed(self, plan: MixedPlan, slots: Tensor) -> Attend:
        """See `mixed_program.MixedAttention`."""
        group, tokens = self.num_q_heads // self.pool.num_kv_heads, len(slots)
        config = extend_config(self.pool.head_dim, self.pool.dtype.itemsize, tokens * group // MIXED_ROWS_EXPECTED)
        tiles = plan_extend(plan.ext_cu_q, tokens, group, config)
        most = min(plan.max_decodes, tokens)
        rows, seen, cu_q = plan.decode_rows[:most], plan.decode_seen[:most], plan.decode_cu_q[: most + 1]
        for workspace in self.workspaces.values():
            plan_split(workspace, seen, cu_q)
        extend = _Extend(self, plan.ext_rows, plan.ext_seen, plan.ext_cu_q, tiles)
        return Step(self, slots, [extend, _Decode(self, rows, seen, slice(None), cu_q)], padded=True)

    def attend_decode(self, rows: Tensor, seq_lens: Tensor, slots: Tensor, sharing: Sharing | None) -> Attend:
        """See `decode_program.DeviceAttention`."""
        self._plan_decode(seq_lens, sharing)
        return Step(self, slots, [_Decode(self, rows, seq_lens, slice(None), sharing=sharing)], padded=False)

    def _plan_decode(self, seq_lens: Tensor, sharing: Sharing | None) -> None:
        if sharing is not None:
            plan_split(self.shared.split, sharing.lens)
        for window, workspace in self.workspaces.items():
            plan_split(workspace, seq_lens, starts=sharing.starts if sharing is not None and not window else None)


class _Extend:
    """The extend rows of a step: the first tokens of the batch."""

    def __init__(self, to: TritonAttention, rows: Tensor, seq_lens: Tensor, cu_q: Tensor, plan: ExtendPlan) -> None:
        self._to, self._rows, self._seq_lens, self._cu_q, self._plan = to, rows, seq_lens, cu_q, plan

    def __call__(self, layer: int, q: Tensor, out: Tensor) -> None:
        to = self._to
        k, v = to.pool.keys_and_values(layer)
        extend_attention(
            q, k, v, to.page_table, self._rows, self._seq_lens, self._cu_q, self._plan, out,
            page_size=to.pool.page_size, scale=to.scale, window=to.windows[layer],
        )  # fmt: skip


class _Decode:
    """The decode rows of a step: one token each."""

    def __init__(
        self,
        to: TritonAttention,
        rows: Tensor,
        seq_lens: Tensor,
        tokens: slice,
        cu_q: Tensor | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        """
        Args:
            tokens: where they are in the batch.
            cu_q: [R + 1] int32, where each one is within `tokens`; None = one after the other.
            sharing: which of them attend a prefix together, in layers without a window.
        """
        self._to, self._rows, self._seq_lens, self._tokens = to, rows, seq_lens, tokens
        self._cu_q, self._sharing = cu_q, sharing

    def __call__(self, layer: int, q: Tensor, out: Tensor) -> None:
        to, window = self._to, self._to.windows[layer]
        k, v = to.pool.keys_and_values(layer)
        q, shared, page_size = q[self._tokens], None, to.pool.page_size
        if self._sharing is not None and not window:
            shared = self._sharing, to.shared
            shared_attention(q, k, v, to.page_table, *shared, page_size=page_size, scale=to.scale)
        split_attention(
            q, k, v, to.page_table, self._rows, self._seq_lens, to.workspaces[window], out[self._tokens],
            page_size=page_size, scale=to.scale, cu_q=self._cu_q, shared=shared,
        )  # fmt: skip


class Step:
    """What `prepare` returns: called once per layer. Rotates, stores, and lets the step's parts attend."""

    def __init__(self, to: TritonAttention, slots: Tensor, parts: Sequence[Part], *, padded: bool) -> None:
        """
        Args:
            padded: some tokens belong to no part; they get zeros.
        """
        self._to, self._slots, self._parts = to, slots, parts
        make = torch.zeros if padded else torch.empty
        # One buffer for all layers: each is consumed before the next.
        self._out = make((len(slots), to.num_q_heads, to.pool.head_dim), dtype=to.dtype, device=to.pool.device)

    def __call__(self, layer: int, qkv: Tensor, rotation: Rotation, qk_norm: QkNorm | None) -> Tensor:
        to, (tokens, heads, dim) = self._to, self._out.shape
        k, v = to.pool.keys_and_values(layer)
        rotate_and_store(qkv, rotation.positions, rotation.table, k, v, self._slots, heads, qk_norm)
        q = qkv[:, : heads * dim].view(tokens, heads, dim)
        for attend in self._parts:
            attend(layer, q, self._out)
        return self._out.view(tokens, heads * dim)

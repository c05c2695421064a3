"""Paged attention by FlashInfer: FA3 for prompts on Hopper, FA2 elsewhere, its split decode in CUDA graphs.

FlashInfer plans on the host, from the rows' lengths: decode steps before a graph is replayed (`plan_decode`), prompts
in `prepare`. Everything else is `TritonAttention`'s: rotary embedding with the KV write, very short extends, decode
rows beside prompts, small mixed steps, whose graphs need a plan made on the device, decode steps that attend shared
prefixes once, and, unless asked otherwise, all decode steps. The package is imported by the constructors only
(`flashinfer_modules.py`).
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.worker.attention.device_plans import MixedPlan
from services.worker.attention.flashinfer_modules import decodes_on_tensor_cores, prefill_kind
from services.worker.attention.flashinfer_plan import PagedLengths, paged_lengths, partials_bytes, plan_bytes
from services.worker.attention.shared_prefix import SharedPrefixes
from services.worker.attention.triton_backend import Part, Step, TritonAttention
from services.worker.batch import Batch
from services.worker.download import Mark, mark, wait
from services.worker.kernels.device import sm_count
from services.worker.kernels.page_indices import page_indices
from services.worker.kernels.shared_attention import Sharing
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.rows import I64, Rows
from services.worker.upload import upload_all

FA3_TOKENS, FA2_TOKENS = 128, 32
"""Mean new tokens per row from which each is used, by measurement on an H100. FA3's tiles are 128 tokens of one head;
FA2 fills a tile with the heads of a group as well and splits long rows; below, our kernel is ahead of both."""
MOST_INDICES = 1 << 24
"""Page ids of a decode step that memory is kept for (64 MiB); more are possible only where many rows share long
prefixes."""


class FlashInferAttention:
    """Keeps the wrappers and their workspaces; steps must be executed in order, on one stream."""

    name = "flashinfer"

    def __init__(
        self,
        pool: KvPool,
        rows: Rows,
        windows: list[int | None],
        num_q_heads: int,
        dtype: torch.dtype,
        *,
        decodes: bool = True,
    ) -> None:
        """
        Args:
            dtype: of queries, results, and the pool.
            decodes: attend decode steps too.
        """
        assert pool.dtype == dtype
        self.pool, self.dtype, self.num_q_heads = pool, dtype, num_q_heads
        self.page_table = rows.page_table.device
        self.windows = [-1 if window is None else window - 1 for window in windows]
        """Tokens before its own that a query of each layer sees; -1 = all."""
        self.pages = [pool.pages(layer) for layer in range(len(pool.layers))]
        self.partials = torch.zeros(
            partials_bytes(num_q_heads, pool.num_kv_heads, pool.head_dim, sm_count(pool.device), rows.max_rows),
            dtype=torch.uint8, device=pool.device,
        )  # fmt: skip
        self._most_indices = min(rows.max_rows * rows.max_pages_per_row, MOST_INDICES)
        self.indices = torch.zeros(self._most_indices + rows.max_rows, dtype=torch.int32, device=pool.device)
        """Page ids of a decode step, those of padding included."""
        self._triton = TritonAttention(pool, rows, windows, num_q_heads, dtype)
        self._prompts = _RaggedRows(self, prefill_kind(pool.device, dtype))
        self._short = _RaggedRows(self, "fa2")
        self._sized: dict[int, _SizedDecode] = {}
        self.decodes = decodes

    def prepare(self, batch: Batch) -> Attend:
        parts: list[Part] = []
        if len(batch.ext_rows):
            parts.append(self._plan_extends(batch))
        if len(batch.decode_rows):
            parts.append(self._triton.plan_decodes(batch))
        padded = batch.num_tokens > batch.num_extend_tokens + len(batch.decode_rows)
        return Step(self._triton, batch.slots, parts, padded=padded)

    def _plan_extends(self, batch: Batch) -> Part:
        mean = batch.num_extend_tokens / len(batch.ext_rows)
        if mean < FA2_TOKENS:
            return self._triton.plan_extends(batch)
        wrappers = self._prompts if mean >= FA3_TOKENS else self._short
        return wrappers.plan(batch.ext_rows, batch.ext_starts + batch.ext_lens, batch.ext_lens)

    def attend_mixed(self, plan: MixedPlan, slots: Tensor) -> Attend:
        """See `mixed_program.MixedAttention`."""
        return self._triton.attend_mixed(plan, slots)

    @property
    def most_members(self) -> int:
        """See `TritonAttention`."""
        return self._triton.most_members

    def share_among(self, members: int) -> None:
        """See `TritonAttention`."""
        self._triton.share_among(members)

    def find_shared(self, rows: I64) -> SharedPrefixes | None:
        """See `decode_program.DeviceAttention`."""
        return self._triton.find_shared(rows)

    def fits(self, seq_lens: I64) -> bool:
        """See `decode_program.HostPlanner`."""
        return paged_lengths(seq_lens, self.pool.page_size).num_indices <= self._most_indices

    def plan_decode(self, seq_lens: I64, size: int) -> None:
        """See `decode_program.HostPlanner`."""
        if size not in self._sized:
            with torch.inference_mode(False):  # what is made for serving may be written while graphs are captured
                self._sized[size] = _SizedDecode(self, size)
        self._sized[size].plan(seq_lens)

    def attend_decode(self, rows: Tensor, seq_lens: Tensor, slots: Tensor, sharing: Sharing | None) -> Attend:
        """See `decode_program.DeviceAttention`; without sharing, `plan_decode` was called for the same rows before."""
        if sharing is not None or not self.decodes:
            return self._triton.attend_decode(rows, seq_lens, slots, sharing)
        sized = self._sized[len(rows)]
        page_indices(self.page_table, rows, sized.indptr, self.indices)
        return Step(self._triton, slots, [_Part(self, sized.wrappers, slice(None))], padded=False)


class _Part:
    """Tokens of a step that one planned wrapper attends to."""

    def __init__(self, to: FlashInferAttention, wrappers: dict[int, Any], tokens: slice) -> None:
        """
        Args:
            wrappers: by window.
            tokens: where they are in the batch.
        """
        self._to, self._wrappers, self._tokens = to, wrappers, tokens

    def __call__(self, layer: int, q: Tensor, out: Tensor) -> None:
        to = self._to
        self._wrappers[to.windows[layer]].run(q[self._tokens], to.pages[layer], out=out[self._tokens])


class _RaggedRows:
    """Rows with any number of new tokens, planned anew in every step.

    A plan goes to the device from pinned memory of the wrapper's, so the next one waits until that copy is done, which
    is when the device begins the step.
    """

    def __init__(self, to: FlashInferAttention, kind: str) -> None:
        flashinfer: Any = importlib.import_module("flashinfer")
        self._to = to
        self._wrappers: dict[int, Any] = {
            window: flashinfer.BatchPrefillWithPagedKVCacheWrapper(to.partials, "NHD", backend=kind)
            for window in set(to.windows)
        }
        self._copied: Mark | None = None

    def plan(self, rows: I64, seq_lens: I64, q_lens: I64) -> _Part:
        """The first tokens of a step.

        Args:
            rows, seq_lens, q_lens: [R]; each row's queries are the last of its tokens.
        """
        to, pool = self._to, self._to.pool
        lengths = paged_lengths(seq_lens, pool.page_size)
        rows_there, indptr = upload_all([rows.astype(np.int32), lengths.indptr], pool.device)
        indices = torch.empty(lengths.num_indices, dtype=torch.int32, device=pool.device)
        page_indices(to.page_table, rows_there, indptr, indices)
        cu_q = np.concatenate(([0], np.cumsum(q_lens)))
        cu_q_pinned, indptr_pinned, last_pinned, lens_pinned = (
            torch.from_numpy(part.astype(np.int32)).pin_memory()
            for part in (cu_q, lengths.indptr, lengths.last_page_len, seq_lens)
        )
        if self._copied is not None:
            wait(self._copied)
        for window, wrapper in self._wrappers.items():
            wrapper.plan(
                cu_q_pinned, indptr_pinned, indices, last_pinned, to.num_q_heads, pool.num_kv_heads, pool.head_dim,
                pool.page_size, causal=True, window_left=window, q_data_type=to.dtype, kv_data_type=pool.dtype,
                seq_lens=lens_pinned, max_token_per_sequence=int(q_lens.max()),
            )  # fmt: skip
        self._copied = mark(pool.device)
        return _Part(to, self._wrappers, slice(int(cu_q[-1])))


class _SizedDecode:
    """Decode steps of one size: wrappers whose memory a graph may keep. The rows' pages are listed by the graph."""

    def __init__(self, to: FlashInferAttention, size: int) -> None:
        flashinfer: Any = importlib.import_module("flashinfer")
        self._replan: Any = flashinfer.fast_decode_plan
        self._to, self._size, pool = to, size, to.pool
        self._lengths = torch.zeros(2 * size + 1, dtype=torch.int32, device=pool.device)
        self.indptr, last_page_len = self._lengths[: size + 1], self._lengths[size + 1 :]
        self.wrappers: dict[int, Any] = {}
        for window in set(to.windows):
            wrapper = self.wrappers[window] = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                to.partials, "NHD", use_cuda_graph=True,
                use_tensor_cores=decodes_on_tensor_cores(to.num_q_heads, pool.num_kv_heads),
                paged_kv_indptr_buffer=self.indptr, paged_kv_indices_buffer=to.indices,
                paged_kv_last_page_len_buffer=last_page_len,
            )  # fmt: skip
            plan_buffer = torch.zeros(plan_bytes(size), dtype=torch.uint8, device=pool.device)
            wrapper.reset_workspace_buffer(to.partials, plan_buffer)
            lengths = paged_lengths(np.zeros(0, np.int64), pool.page_size, size)
            wrapper.plan(*_on_host(lengths, to.indices[:size]), **self._shape(window))
        self._copied: Mark = mark(pool.device)

    def plan(self, seq_lens: I64) -> None:
        """
        Args:
            seq_lens: [at most the size] tokens that each row sees.
        """
        lengths = paged_lengths(seq_lens, self._to.pool.page_size, self._size)
        both = torch.from_numpy(np.concatenate((lengths.indptr, lengths.last_page_len))).pin_memory()
        self._lengths.copy_(both, non_blocking=True)
        wait(self._copied)
        for window, wrapper in self.wrappers.items():
            self._replan(wrapper, *_on_host(lengths, self._to.indices), **self._shape(window))
        self._copied = mark(self._to.pool.device)

    def _shape(self, window: int) -> dict[str, Any]:
        to, pool = self._to, self._to.pool
        return {
            "num_qo_heads": to.num_q_heads, "num_kv_heads": pool.num_kv_heads, "head_dim": pool.head_dim,
            "page_size": pool.page_size, "window_left": window, "q_data_type": to.dtype, "kv_data_type": pool.dtype,
        }  # fmt: skip


def _on_host(lengths: PagedLengths, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and last page lengths for a plan, which reads the first and the last on the host."""
    return torch.from_numpy(lengths.indptr), indices, torch.from_numpy(lengths.last_page_len)

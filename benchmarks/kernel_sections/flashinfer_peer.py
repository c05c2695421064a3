"""Attention of the triton and flashinfer backends side by side, where flashinfer can be imported.

Run `python -m services.worker --attention-backend flashinfer ...` once before, or this may build for minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.kernel_sections.decode import SHAPES, decode_launches
from benchmarks.kernel_sections.extend import flops_of, launch, make
from benchmarks.kernel_sections.paged_batch import PagedBatch, paged_batch
from benchmarks.kernel_sections.timing import Ceilings, Report, graph_us
from services.worker.attention.flashinfer_modules import decodes_on_tensor_cores, flashinfer_obstacle, prefill_kind
from services.worker.attention.flashinfer_plan import paged_lengths
from services.worker.kernels.reference.attention import paged_attention
from services.worker.kv_pool import KvPool
from services.worker.rows import Rows

BF16 = torch.bfloat16
PROMPTS = {
    "1x8192": ([8192], [8192]),
    "8x1024": ([1024] * 8, [1024] * 8),
    "16x64 after 1024": ([1088] * 16, [64] * 16),
    "16x16 after 1024": ([1040] * 16, [16] * 16),
}
CHECKED_ROWS, CHECKED_QUERIES = 4, 300
PLANS = 50


def run(report: Report, ceilings: Ceilings) -> None:
    device = torch.device("cuda", 0)
    obstacle = flashinfer_obstacle(device, BF16, 128)
    if obstacle is not None:
        report.passed("flashinfer", True, f"skipped: {obstacle}")
        return
    workspace = torch.zeros(256 << 20, dtype=torch.uint8, device=device)
    for batch in (1, 8, 64, 256):
        for page_size in (1, 16):
            _decode(report, ceilings, workspace, "8B", batch, page_size)
    for batch in (1, 64, 256):
        _decode(report, ceilings, workspace, "0.6B", batch, 16)
    for name in PROMPTS:
        for page_size in (1, 16):
            _prompts(report, ceilings, workspace, name, page_size, prefill_kind(device, BF16))
    for rows in (64, 256):
        _plans(report, device, rows)


def _decode(
    report: Report, ceilings: Ceilings, workspace: torch.Tensor, shape: str, batch: int, page_size: int
) -> None:
    heads = num_q_heads, num_kv_heads, head_dim = SHAPES[shape]
    case = paged_batch(
        [1024] * batch, [1] * batch, num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        page_size=page_size,
    )  # fmt: skip
    name, limit_us = f"decode {shape} b{batch} ctx1024 page{page_size}", ceilings.bytes_us(case.kv_bytes)
    report.time(f"{name}: triton", graph_us(decode_launches(case, torch.empty_like(case.q), None)), limit_us=limit_us)
    chosen = decodes_on_tensor_cores(num_q_heads, num_kv_heads)
    for tensor_cores in {chosen, True}:
        label = f"{name}: flashinfer {'matrix units' if tensor_cores else 'other units'}"
        runs = _decode_runs(case, workspace, heads, tensor_cores)
        _agrees(report, label, case, runs[0](), num_q_heads)
        report.time(label, graph_us(runs), limit_us=limit_us, used=tensor_cores == chosen)


def _decode_runs(
    case: PagedBatch, workspace: torch.Tensor, heads: tuple[int, int, int], tensor_cores: bool
) -> list[Callable[[], torch.Tensor]]:
    """As the backend plans a captured step: one launch per layer."""
    import flashinfer

    (indptr, last_page_len), indices = _lengths(case), _indices(case)
    wrapper: Any = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_cuda_graph=True, use_tensor_cores=tensor_cores, paged_kv_indptr_buffer=indptr.cuda(),
        paged_kv_indices_buffer=indices, paged_kv_last_page_len_buffer=last_page_len.cuda(),
    )  # fmt: skip
    wrapper.plan(indptr, indices, last_page_len, *heads, case.page_size, q_data_type=BF16, kv_data_type=BF16)
    out = torch.empty_like(case.q)
    return [partial(wrapper.run, case.q, _pages(case, layer), out=out) for layer in range(len(case.pools))]


def _prompts(report: Report, ceilings: Ceilings, workspace: torch.Tensor, name: str, page_size: int, best: str) -> None:
    import flashinfer

    lengths, q_lens = PROMPTS[name]
    case = make("8B", lengths, q_lens, page_size)
    num_q_heads, num_kv_heads, head_dim = SHAPES["8B"]
    flops = flops_of(lengths, q_lens, num_q_heads, head_dim)
    limit_us = max(ceilings.flops_us(flops), ceilings.bytes_us(case.kv_bytes + 2 * case.q.nbytes))
    runs: dict[str, Callable[[], Any]] = {"triton": launch(case, torch.empty_like(case.q), None)}
    for kind in sorted({"fa2", best}):
        indptr, last_page_len = _lengths(case)
        wrapper: Any = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=kind)
        wrapper.plan(
            case.cu_q.cpu(), indptr, _indices(case), last_page_len, num_q_heads, num_kv_heads, head_dim, page_size,
            causal=True, q_data_type=BF16, kv_data_type=BF16,
        )  # fmt: skip
        out = torch.empty_like(case.q)
        runs[f"flashinfer {kind}"] = partial(wrapper.run, case.q, _pages(case, 0), out=out)
        runs[f"flashinfer {kind}"]()
        _agrees(report, f"extend 8B {name} page{page_size}: flashinfer {kind}", case, out, num_q_heads)
    for label, once in runs.items():
        us = graph_us([once], calls=4, replays=5)
        tflops = round(flops / us / 1e6, 1)
        report.time(f"extend 8B {name} page{page_size}: {label}", us, limit_us=limit_us, tflops=tflops)


def _plans(report: Report, device: torch.device, rows: int) -> None:
    """The host's time for a decode step's plan, which the device does not see."""
    from services.worker.attention.flashinfer_backend import FlashInferAttention

    pool = KvPool(num_layers=1, num_pages=8, page_size=16, num_kv_heads=8, head_dim=128, dtype=BF16, device=device)
    attention = FlashInferAttention(pool, Rows(rows, 65, 16, device), [None], 32, BF16)
    lengths, times = np.full(rows, 1024), []
    for step in range(PLANS):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        attention.plan_decode(lengths - step, rows)
        times.append((time.perf_counter() - started_s) * 1e6)
    report.time(f"plan of a decode step, host, b{rows}: flashinfer", statistics.median(times))


def _lengths(case: PagedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """indptr and last page lengths, on the host."""
    lengths = paged_lengths(case.seq_lens.cpu().numpy().astype(np.int64), case.page_size)
    return torch.from_numpy(lengths.indptr), torch.from_numpy(lengths.last_page_len)


def _indices(case: PagedBatch) -> torch.Tensor:
    counts = [-(-length // case.page_size) for length in case.seq_lens.tolist()]
    return torch.cat([case.page_table[row, :count] for row, count in enumerate(counts)])


def _pages(case: PagedBatch, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views [P, page_size, G, D]."""
    k, v = case.pools[layer]
    return k.unflatten(0, (-1, case.page_size)), v.unflatten(0, (-1, case.page_size))


def _agrees(report: Report, name: str, case: PagedBatch, out: torch.Tensor, num_q_heads: int) -> None:
    """The last queries of the first rows, of the first KV head's group (the whole would not fit in float64)."""
    k, v = case.pools[0]
    group = num_q_heads // k.shape[1]
    rows = min(CHECKED_ROWS, case.rows.shape[0])
    ends = case.cu_q[1 : rows + 1].tolist()
    counts = [min(CHECKED_QUERIES, n) for n in (case.cu_q[1:] - case.cu_q[:-1])[:rows].tolist()]
    picked = torch.cat([torch.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]).cuda()
    want = paged_attention(
        case.q[picked, :group].double(), k[:, :1], v[:, :1], case.page_table, case.rows[:rows], case.seq_lens[:rows],
        torch.tensor([0, *counts]).cumsum(0), page_size=case.page_size, scale=case.scale,
    )  # fmt: skip
    report.check(name, out[picked, :group], want, 8e-3)

"""flashinfer's attention on the same batches, where it can be imported and built. Last, as it may build for long."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.kernel_sections.decode import SHAPES
from benchmarks.kernel_sections.extend import BATCHES, make
from benchmarks.kernel_sections.paged_batch import PagedBatch, paged_batch
from benchmarks.kernel_sections.timing import Ceilings, Report, graph_us
from services.worker.kernels.reference.attention import paged_attention


def run(report: Report, ceilings: Ceilings) -> None:
    try:
        import flashinfer
    except ImportError:
        report.passed("flashinfer", True, "not installed: skipped")
        return
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for batch, context in ((1, 1024), (64, 1024), (256, 1024), (1, 8192)):
        num_q_heads, num_kv_heads, head_dim = SHAPES["8B"]
        case = paged_batch(
            [context] * batch, [1] * batch, num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            page_size=1,
        )  # fmt: skip
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(
            *_pages(case),
            num_q_heads,
            num_kv_heads,
            head_dim,
            1,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
        )
        pools = [(k.unsqueeze(1), v.unsqueeze(1)) for k, v in case.pools]
        _agrees(report, f"flashinfer decode b{batch} ctx{context}", case, wrapper.run(case.q, pools[0]))
        us = graph_us([partial(wrapper.run, case.q, pool) for pool in pools])
        report.time(f"flashinfer decode 8B b{batch} ctx{context} page1", us, limit_us=ceilings.bytes_us(case.kv_bytes))
    for name in ("1x8192", "8x1024"):
        case = make("8B", *BATCHES[name], 1)
        num_q_heads, num_kv_heads, head_dim = SHAPES["8B"]
        prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="auto")
        prefill.plan(
            case.cu_q, *_pages(case), num_q_heads, num_kv_heads, head_dim, 1, causal=True,
            q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
        )  # fmt: skip
        pool = (case.pools[0][0].unsqueeze(1), case.pools[0][1].unsqueeze(1))
        us = graph_us([partial(prefill.run, case.q, pool)], calls=4, replays=5)
        report.time(f"flashinfer extend 8B {name} page1", us)


def _pages(case: PagedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Page size 1: indptr, indices, last page lengths."""
    indptr = torch.cat([case.seq_lens.new_zeros(1), case.seq_lens.cumsum(0)]).to(torch.int32)
    indices = torch.cat([case.page_table[i, :n] for i, n in enumerate(case.seq_lens.tolist())])
    return indptr, indices, torch.ones_like(case.seq_lens)


def _agrees(report: Report, name: str, case: PagedBatch, out: torch.Tensor) -> None:
    rows = min(4, case.rows.shape[0])
    want = paged_attention(
        case.q[:rows].double(), *case.pools[0], case.page_table, case.rows[:rows], case.seq_lens[:rows],
        case.cu_q[: rows + 1], page_size=1, scale=case.scale,
    )  # fmt: skip
    report.check(name, out[:rows], want, 8e-3)

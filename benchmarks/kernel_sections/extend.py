"""Prefill and mixed attention: checks, share of the measured matrix rate, candidates, torch's own beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.kernel_sections.decode import SHAPES
from benchmarks.kernel_sections.launch_cases import EXTEND_CANDIDATES
from benchmarks.kernel_sections.paged_batch import PagedBatch, paged_batch
from benchmarks.kernel_sections.timing import Ceilings, Report, graph_us
from services.worker.kernels.extend_attention import extend_attention
from services.worker.kernels.extend_plan import ExtendConfig, extend_config, plan_extend
from services.worker.kernels.reference.attention import paged_attention

BATCHES = {
    "1x8192": ([8192], [8192]),
    "8x1024": ([1024] * 8, [1024] * 8),
    "2048 after 6144": ([8192], [2048]),
    "64x128": ([128] * 64, [128] * 64),
    "64x8 after 1016": ([1024] * 64, [8] * 64),
}


def run(report: Report, ceilings: Ceilings) -> None:
    _checks(report)
    for name in BATCHES:
        _time(report, ceilings, "8B", name, 1)
    _time(report, ceilings, "8B", "1x8192", 16)
    _time(report, ceilings, "0.6B", "1x8192", 1)
    _time(report, ceilings, "MHA64", "1x8192", 1)
    for config in EXTEND_CANDIDATES:
        for name in ("1x8192", "8x1024"):
            _time(report, ceilings, "8B", name, 1, config)
    for config in [ExtendConfig(32, 64, 4, 3), ExtendConfig(64, 64, 4, 3), ExtendConfig(32, 32, 4, 5)]:
        _time(report, ceilings, "8B", "64x8 after 1016", 1, config)
    _sdpa(report, ceilings)


def make(shape: str, lengths: list[int], q_lens: list[int], page_size: int) -> PagedBatch:
    num_q_heads, num_kv_heads, head_dim = SHAPES[shape]
    return paged_batch(
        lengths, q_lens, num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=page_size,
        cold=False,
    )  # fmt: skip


def launch(case: PagedBatch, out: torch.Tensor, config: ExtendConfig | None, window: int = 0) -> Callable[[], None]:
    """The attention of one layer; the plan is made once, as in a step."""
    k_pool, v_pool = case.pools[0]
    group = case.q.shape[1] // k_pool.shape[1]
    mean = case.q.shape[0] * group // case.rows.shape[0]
    config = config or extend_config(case.q.shape[2], k_pool.itemsize, mean)
    plan = plan_extend(case.cu_q, case.q.shape[0], group, config)
    return partial(
        extend_attention,
        case.q, k_pool, v_pool, case.page_table, case.rows, case.seq_lens, case.cu_q, plan, out,
        page_size=case.page_size, scale=case.scale, window=window,
    )  # fmt: skip


def _checks(report: Report) -> None:
    mixed = ([700, 33, 1500, 64, 900, 1], [700, 1, 300, 64, 8, 1])
    for shape in SHAPES:
        for page_size in (1, 16):
            _check(report, shape, *mixed, page_size)
    _check(report, "8B", *mixed, 16, window=100)
    for config in EXTEND_CANDIDATES:
        _check(report, "8B", *mixed, 1, config=config)


def _check(
    report: Report, shape: str, lengths: list[int], q_lens: list[int], page_size: int, *,
    config: ExtendConfig | None = None, window: int = 0,
) -> None:  # fmt: skip
    case = make(shape, lengths, q_lens, page_size)
    out = torch.full_like(case.q, float("nan"))
    launch(case, out, config, window)()
    k_pool, v_pool = case.pools[0]
    want = paged_attention(
        case.q.double(), k_pool, v_pool, case.page_table, case.rows, case.seq_lens, case.cu_q,
        page_size=page_size, scale=case.scale, window=window,
    )  # fmt: skip
    report.check(f"extend {shape} mixed page{page_size} window{window} {config or ''}", out, want, 8e-3)


def flops_of(lengths: list[int], q_lens: list[int], num_q_heads: int, head_dim: int) -> float:
    """Operations of causal attention: two products, a multiplication and an addition each."""
    pairs = sum(q * (n - q) + q * (q + 1) / 2 for n, q in zip(lengths, q_lens, strict=True))
    return 4.0 * pairs * num_q_heads * head_dim


def _time(
    report: Report, ceilings: Ceilings, shape: str, name: str, page_size: int, config: ExtendConfig | None = None
) -> None:
    lengths, q_lens = BATCHES[name]
    case = make(shape, lengths, q_lens, page_size)
    us = graph_us([launch(case, torch.empty_like(case.q), config)], calls=4, replays=5)
    flops = flops_of(lengths, q_lens, case.q.shape[1], case.q.shape[2])
    limit = max(ceilings.flops_us(flops), ceilings.bytes_us(case.kv_bytes + 2 * case.q.nbytes))
    label = f"extend {shape} {name} page{page_size}"
    if config is not None:
        label += f" m{config.block_m} n{config.block_n} w{config.num_warps} s{config.num_stages}"
    report.time(label, us, limit_us=limit, tflops=round(flops / us / 1e6, 1), candidate=config is not None)


def _sdpa(report: Report, ceilings: Ceilings) -> None:
    """Torch's own causal attention on contiguous K and V: what the paged kernel is compared with."""
    num_q_heads, num_kv_heads, head_dim = SHAPES["8B"]
    for rows, tokens in ((1, 8192), (8, 1024)):
        q = torch.randn(rows, num_q_heads, tokens, head_dim, device="cuda", dtype=torch.bfloat16)
        k, v = (
            torch.randn(rows, num_kv_heads, tokens, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(2)
        )
        us = graph_us(
            [partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)],
            calls=4, replays=5,
        )  # fmt: skip
        flops = flops_of([tokens] * rows, [tokens] * rows, num_q_heads, head_dim)
        report.time(
            f"torch sdpa 8B {rows}x{tokens}", us, limit_us=ceilings.flops_us(flops), tflops=round(flops / us / 1e6, 1)
        )

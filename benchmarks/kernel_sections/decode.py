"""Decode attention: checks, share of the copy bandwidth, candidate configurations, flashinfer beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.kernel_sections.launch_cases import SPLIT_CANDIDATES
from benchmarks.kernel_sections.paged_batch import PagedBatch, paged_batch
from benchmarks.kernel_sections.timing import Ceilings, Report, graph_us
from services.worker.kernels.reference.attention import paged_attention
from services.worker.kernels.split_attention import split_attention
from services.worker.kernels.split_plan import SplitConfig, plan_split, split_workspace

SHAPES = {"8B": (32, 8, 128), "0.6B": (16, 8, 128), "MHA64": (16, 16, 64), "TP8": (4, 1, 128)}


def run(report: Report, ceilings: Ceilings) -> None:
    _checks(report)
    for batch, context in ((1, 1024), (1, 8192), (8, 1024), (64, 1024), (256, 1024), (256, 256), (16, 8192)):
        _time(report, ceilings, "8B", [context] * batch, 1)
    for batch, context in ((1, 1024), (64, 1024), (256, 1024)):
        _time(report, ceilings, "0.6B", [context] * batch, 1)
    _time(report, ceilings, "8B", [1024] * 64, 16)
    _time(report, ceilings, "8B", [1024] * 64, 1, kv_dtype=torch.float8_e4m3fn)
    _time(report, ceilings, "8B", [512] * 63 + [8192], 1)
    _time(report, ceilings, "TP8", [1024] * 64, 1)
    _time(report, ceilings, "MHA64", [1024] * 64, 1)
    for lengths in ([1024], [8192], [1024] * 64, [256] * 256):
        for config in SPLIT_CANDIDATES:
            _time(report, ceilings, "8B", lengths, 1, config)


def name_of(shape: str, lengths: list[int], page_size: int) -> str:
    even = len(set(lengths)) == 1
    return f"decode {shape} b{len(lengths)} ctx{lengths[0] if even else 'mixed'} page{page_size}"


def decode_launches(
    case: PagedBatch, out: torch.Tensor, config: SplitConfig | None, max_q_len: int = 1, window: int = 0
) -> list[Callable[[], None]]:
    """One launch per layer; the plan is made here, once, as in a step."""
    num_q_heads, head_dim = case.q.shape[1:]
    k_pool = case.pools[0][0]
    workspace = split_workspace(
        case.rows.shape[0], num_q_heads, k_pool.shape[1], head_dim, k_pool.dtype, k_pool.device,
        max_q_len=max_q_len, window=window, config=config,
    )  # fmt: skip
    workspace.partial_out.fill_(float("nan"))
    cu_q = case.cu_q if max_q_len > 1 else None
    plan_split(workspace, case.seq_lens, cu_q)
    return [
        partial(
            split_attention, case.q, k, v, case.page_table, case.rows, case.seq_lens, workspace, out,
            page_size=case.page_size, scale=case.scale, cu_q=cu_q,
        )
        for k, v in case.pools
    ]  # fmt: skip


def _checks(report: Report) -> None:
    uneven = [1, 700, 33, 4096, 64, 65, 2, 1500]
    for shape in SHAPES:
        for page_size in (1, 16):
            _check(report, shape, uneven, page_size)
    _check(report, "8B", [1024] * 200, 16)
    _check(report, "8B", [8192], 1)
    _check(report, "8B", uneven, 16, window=256)
    _check(report, "8B", [max(n, 8) for n in uneven], 16, max_q_len=8)
    for config in SPLIT_CANDIDATES:
        _check(report, "8B", uneven, 1, config=config)


def _check(
    report: Report, shape: str, lengths: list[int], page_size: int, *,
    config: SplitConfig | None = None, window: int = 0, max_q_len: int = 1,
) -> None:  # fmt: skip
    num_q_heads, num_kv_heads, head_dim = SHAPES[shape]
    case = paged_batch(
        lengths, [max_q_len] * len(lengths), num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        page_size=page_size, cold=False,
    )  # fmt: skip
    out = torch.full_like(case.q, float("nan"))
    decode_launches(case, out, config, max_q_len, window)[0]()
    k_pool, v_pool = case.pools[0]
    want = paged_attention(
        case.q.double(), k_pool, v_pool, case.page_table, case.rows, case.seq_lens, case.cu_q,
        page_size=page_size, scale=case.scale, window=window,
    )  # fmt: skip
    report.check(f"{name_of(shape, lengths, page_size)} window{window} q{max_q_len} {config or ''}", out, want, 8e-3)


def _time(
    report: Report, ceilings: Ceilings, shape: str, lengths: list[int], page_size: int,
    config: SplitConfig | None = None, kv_dtype: torch.dtype = torch.bfloat16,
) -> None:  # fmt: skip
    num_q_heads, num_kv_heads, head_dim = SHAPES[shape]
    case = paged_batch(
        lengths, [1] * len(lengths), num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        page_size=page_size, kv_dtype=kv_dtype,
    )  # fmt: skip
    us = graph_us(decode_launches(case, torch.empty_like(case.q), config))
    name = name_of(shape, lengths, page_size)
    if config is not None:
        name += f" n{config.block_n} w{config.num_warps} s{config.num_stages} c{config.ctas_per_sm}"
    limit = ceilings.bytes_us(case.kv_bytes + 2 * case.q.nbytes)
    report.time(name, us, limit_us=limit, kv_dtype=str(kv_dtype), candidate=config is not None)

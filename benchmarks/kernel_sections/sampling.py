"""Sampling: draws against the fp64 reference at full vocabularies, times of greedy, filtered and flat batches."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import torch

from benchmarks.kernel_sections.timing import Ceilings, Report, graph_us, sets_needed
from services.worker.kernels.reference.sampling import RowParams
from services.worker.kernels.sampling import sample
from services.worker.kernels.sampling_table import SamplingTable
from services.worker.kernels.sampling_workspace import sampling_workspace
from tests.unit.worker.kernels.sampling_case import assert_drawn, table_of, write_row

MODES = {
    "greedy": RowParams(temperature=0.0),
    "temperature": RowParams(temperature=0.8),
    "top_p": RowParams(top_p=0.95),
    "top_k top_p": RowParams(temperature=0.6, top_k=20, top_p=0.95),
    "min_p": RowParams(min_p=0.05),
    "penalties top_p": RowParams(top_p=0.95, repetition=1.1, presence=0.5, frequency=0.2, output_ids=[5, 6, 7]),
}
CUDA = torch.device("cuda")


def logits_of(rows: int, vocab: int, dtype: torch.dtype, kind: str) -> torch.Tensor:
    """`peaked` resembles a language model; `flat` overflows the candidate buffer."""
    logits = torch.randn(rows, vocab, device="cuda") * (2.0 if kind == "peaked" else 0.5)
    if kind == "peaked":
        hot = torch.randint(0, vocab, (rows, 100), device="cuda")
        logits.scatter_add_(1, hot, torch.rand(rows, 100, device="cuda") * 14)
    return logits.to(dtype)


def run(report: Report, ceilings: Ceilings) -> None:
    for vocab, dtype in ((128256, torch.bfloat16), (151936, torch.float32), (200019, torch.bfloat16)):
        for kind in ("peaked", "flat"):
            _check(report, vocab, dtype, kind)
    for rows in (1, 64, 256):
        for mode in MODES:
            _time(report, ceilings, rows, 128256, torch.bfloat16, mode, "peaked")
    _time(report, ceilings, 256, 128256, torch.float32, "top_p", "peaked")
    _time(report, ceilings, 256, 151936, torch.bfloat16, "top_p", "peaked")
    for rows in (1, 256):
        _time(report, ceilings, rows, 128256, torch.bfloat16, "top_p", "flat")
    _sort_baseline(report)


def _check(report: Report, vocab: int, dtype: torch.dtype, kind: str) -> None:
    params = [replace(row, seed=random.getrandbits(62), step=random.randrange(999)) for row in list(MODES.values()) * 4]
    rows = torch.randperm(len(params)).to(torch.int32)
    table = table_of(params, rows, len(params), vocab, CUDA)
    logits = logits_of(len(params), vocab, dtype, kind)
    before = logits.clone()
    tokens = torch.full((len(params),), -7, dtype=torch.int32, device="cuda")
    logprobs = torch.full((len(params),), float("nan"), device="cuda")
    sample(logits, rows.cuda(), table, sampling_workspace(len(params), vocab, CUDA), tokens, logprobs)
    wrong = []
    for i, row in enumerate(params):
        try:
            assert_drawn(int(tokens[i]), logits[i], row, slack=1e-4)
        except (AssertionError, IndexError) as fault:
            wrong.append(str(fault)[:200])
    name = f"sampling V{vocab} {dtype} {kind}"
    report.passed(f"{name}: {len(params) - len(wrong)}/{len(params)} draws", not wrong, " | ".join(wrong[:3]))
    want = logits.double().log_softmax(-1).gather(1, tokens.long().clamp(0, vocab - 1)[:, None])[:, 0]
    report.check(f"{name} logprobs", logprobs, want, 1e-4)
    report.passed(f"{name} leaves the logits alone", torch.equal(logits, before))


def _time(report: Report, ceilings: Ceilings, rows: int, vocab: int, dtype: torch.dtype, mode: str, kind: str) -> None:
    state = torch.arange(rows, dtype=torch.int32)
    table = (
        table_of([MODES[mode]] * rows, state, rows, vocab, CUDA)
        if mode.startswith("pen")
        else _plain(rows, vocab, mode)
    )
    workspace = sampling_workspace(rows, vocab, CUDA)
    size = rows * vocab * dtype.itemsize
    sets = [logits_of(rows, vocab, dtype, kind) for _ in range(sets_needed(size, 8))]
    tokens = torch.zeros(rows, dtype=torch.int32, device="cuda")
    logprobs = torch.zeros(rows, device="cuda")
    index = state.cuda()
    filtered = mode not in ("greedy", "temperature")
    us = graph_us(
        [partial(sample, x, index, table, workspace, tokens, logprobs, filtered=filtered) for x in sets],
        calls=8,
        replays=5,
    )
    report.time(f"sampling {mode} {kind} R{rows} V{vocab} {dtype}", us, limit_us=ceilings.bytes_us(size))


def _plain(rows: int, vocab: int, mode: str) -> SamplingTable:
    """A table without banks (a bank row per batch row would be gigabytes here)."""
    table = table_of([], torch.empty(0, dtype=torch.int32), rows, vocab, CUDA)
    write_row(table, 0, 0, MODES[mode])
    table.floats[:] = table.floats[0]
    table.ints[:] = table.ints[0]
    table.seeds.copy_(torch.arange(rows))
    return table


def _sort_baseline(report: Report) -> None:
    """What a sort costs, for comparison."""
    logits = logits_of(64, 128256, torch.float32, "peaked")
    report.time(
        "torch.sort R64 V128256 fp32",
        graph_us([partial(torch.sort, logits, dim=-1, descending=True)], calls=3, replays=3),
    )

"""Norms, activation, rotary + KV write: checks in bf16 and shares of the copy bandwidth."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.kernel_sections.timing import Ceilings, Report, graph_us, sets_needed
from services.worker.kernels import rms_norm, rotary, silu_and_mul
from services.worker.kernels.reference import elementwise as reference
from services.worker.quantization.rounded import unfilled_rows

BF16 = torch.bfloat16


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=BF16)


def run(report: Report, ceilings: Ceilings) -> None:
    for tokens in (1, 64, 256, 8192):
        _norm(report, ceilings, tokens, 4096)
        _silu(report, ceilings, tokens, 14336)
        _rotary(report, ceilings, tokens, 32, 8, 128, norm=False)
        _rotary(report, ceilings, tokens, 16, 8, 128, norm=True)
    _norm(report, ceilings, 1, 1024)


def _norm(report: Report, ceilings: Ceilings, tokens: int, hidden: int) -> None:
    weight = rand(hidden)
    x, residual = rand(tokens, hidden), rand(tokens, hidden)
    added = (x.float() + residual.float()).to(BF16)
    want = reference.rms_norm(added.double(), weight.double(), 1e-6)
    rms_norm.add_rms_norm(x, residual, weight, 1e-6, x)
    report.check(f"add_rms_norm T{tokens} N{hidden}", x, want, 5e-3)
    report.passed(f"add_rms_norm residual T{tokens} N{hidden}", torch.equal(residual, added))
    rms_norm.rms_norm(residual, weight, 1e-6, x)
    want = reference.rms_norm(residual.double(), weight.double(), 1e-6)
    report.check(f"rms_norm T{tokens} N{hidden}", x, want, 5e-3)
    moved = 4 * tokens * hidden * 2
    sets = [(rand(tokens, hidden), rand(tokens, hidden)) for _ in range(sets_needed(moved // 2))]
    launches = [partial(rms_norm.add_rms_norm, x, residual, weight, 1e-6, x) for x, residual in sets]
    report.time(f"add_rms_norm T{tokens} N{hidden}", graph_us(launches), limit_us=ceilings.bytes_us(moved))
    rows = unfilled_rows(x, hidden)
    launches = [partial(rms_norm.add_rms_norm, x, residual, weight, 1e-6, rows) for x, residual in sets]
    limit_us = ceilings.bytes_us(moved - tokens * hidden)
    report.time(f"add_rms_norm to fp8 T{tokens} N{hidden}", graph_us(launches), limit_us=limit_us)


def _silu(report: Report, ceilings: Ceilings, tokens: int, width: int) -> None:
    moved = 3 * tokens * width * 2
    sets = [
        (rand(tokens, 2 * width), torch.empty(tokens, width, device="cuda", dtype=BF16))
        for _ in range(sets_needed(moved))
    ]
    silu_and_mul.silu_and_mul(*sets[0])
    report.check(f"silu_and_mul T{tokens}", sets[0][1][:64], reference.silu_and_mul(sets[0][0][:64].double()), 5e-3)
    launches = [partial(silu_and_mul.silu_and_mul, x, out) for x, out in sets]
    report.time(f"silu_and_mul T{tokens} I{width}", graph_us(launches), limit_us=ceilings.bytes_us(moved))
    rows = unfilled_rows(sets[0][0], width)
    launches = [partial(silu_and_mul.silu_and_mul, x, rows) for x, _ in sets]
    limit_us = ceilings.bytes_us(moved - tokens * width)
    report.time(f"silu_and_mul to fp8 T{tokens} I{width}", graph_us(launches), limit_us=limit_us)


def _rotary(
    report: Report, ceilings: Ceilings, tokens: int, num_q_heads: int, num_kv_heads: int, head_dim: int, *, norm: bool
) -> None:
    name = f"rotate_and_store T{tokens} H{num_q_heads} G{num_kv_heads} norm={norm}"
    slots = 2 * tokens + 8
    cos_sin = torch.randn(8192, head_dim, device="cuda")
    positions = torch.randint(0, 8192, (tokens,), device="cuda", dtype=torch.int32)
    loc = torch.randperm(slots, device="cuda")[:tokens].to(torch.int32)
    qk_norm = (rand(head_dim), rand(head_dim), 1e-6) if norm else None
    width = (num_q_heads + 2 * num_kv_heads) * head_dim
    moved = tokens * (num_q_heads + 2 * num_kv_heads) * head_dim * 2 * 2
    sets = [
        (rand(tokens, width), rand(slots, num_kv_heads, head_dim), rand(slots, num_kv_heads, head_dim))
        for _ in range(sets_needed(moved))
    ]
    qkv, k_pool, v_pool = sets[0]
    exact = [tensor.double() for tensor in sets[0]]
    exact_norm = (qk_norm[0].double(), qk_norm[1].double(), 1e-6) if qk_norm else None
    reference.rotate_and_store(exact[0], positions, cos_sin.double(), exact[1], exact[2], loc, num_q_heads, exact_norm)
    rotary.rotate_and_store(qkv, positions, cos_sin, k_pool, v_pool, loc, num_q_heads, qk_norm)
    for part, got, want in zip("qkv", sets[0], exact, strict=True):
        report.check(f"{name} {part}", got, want, 5e-3)
    launches = [
        partial(rotary.rotate_and_store, qkv, positions, cos_sin, k_pool, v_pool, loc, num_q_heads, qk_norm)
        for qkv, k_pool, v_pool in sets
    ]
    report.time(name, graph_us(launches), limit_us=ceilings.bytes_us(moved))

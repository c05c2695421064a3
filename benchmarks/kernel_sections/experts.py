"""Mixture of experts: checks and shares of the limit that is nearer, weight bytes or operations."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.kernel_sections.launch_cases import MOE_SHAPES
from benchmarks.kernel_sections.timing import Ceilings, Report, graph_us
from services.worker.kernels.expert_mlp import ExpertConfig, expert_mlp
from services.worker.kernels.expert_routing import assign_blocks, route
from services.worker.kernels.reference import experts as reference

CANDIDATES = {
    "Mixtral-8x7B": {
        8192: [
            (ExpertConfig(128, 64, 64, 8, 4), ExpertConfig(128, 128, 64, 8, 4)),
            (ExpertConfig(128, 128, 64, 8, 3), ExpertConfig(128, 256, 64, 8, 3)),
            (ExpertConfig(64, 128, 64, 8, 3), ExpertConfig(64, 256, 64, 8, 3)),
        ],
    },
    "Qwen3-30B-A3B": {
        1: [
            (ExpertConfig(16, 32, 128, 4, 4), ExpertConfig(16, 64, 128, 4, 4)),
            (ExpertConfig(16, 32, 256, 4, 3), ExpertConfig(16, 64, 256, 4, 3)),
        ],
        64: [
            (ExpertConfig(16, 32, 128, 4, 4), ExpertConfig(16, 64, 128, 4, 4)),
            (ExpertConfig(16, 128, 64, 4, 4), ExpertConfig(16, 128, 64, 4, 4)),
        ],
    },
}


def run(report: Report, ceilings: Ceilings) -> None:
    for name in MOE_SHAPES:
        num_experts, top_k, hidden, intermediate = MOE_SHAPES[name]
        gate_up = torch.randn(num_experts, 2 * intermediate, hidden, device="cuda", dtype=torch.bfloat16) * hidden**-0.5
        down = torch.randn(num_experts, hidden, intermediate, device="cuda", dtype=torch.bfloat16) * intermediate**-0.5
        for tokens in (1, 7, 64, 500, 8192):
            x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
            logits = torch.randn(tokens, num_experts, device="cuda")
            weights, experts = route(logits, top_k, renormalize=True)
            want_weights, want_experts = reference.route(logits.double(), top_k, True)
            report.check(f"route {name} T{tokens}", weights, want_weights, 1e-5)
            report.passed(f"route {name} T{tokens} experts", torch.equal(experts.long(), want_experts))
            if tokens <= 500:
                want = reference.expert_mlp(x.float(), gate_up, down, weights, experts)
                report.check(f"experts {name} T{tokens}", expert_mlp(x, gate_up, down, weights, experts), want, 1e-2)
            if tokens != 7:
                _time(report, ceilings, name, x, gate_up, down, weights, experts, None)
                for configs in CANDIDATES[name].get(tokens, []):
                    _time(report, ceilings, name, x, gate_up, down, weights, experts, configs)
            if tokens in (1, 64, 8192):
                us = graph_us([partial(assign_blocks, experts, num_experts, 64)])
                report.time(f"assign_blocks {name} T{tokens}", us)


def _time(
    report: Report, ceilings: Ceilings, name: str, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    weights: torch.Tensor, experts: torch.Tensor, configs: tuple[ExpertConfig, ExpertConfig] | None,
) -> None:  # fmt: skip
    out = torch.empty_like(x)
    us = graph_us([partial(expert_mlp, x, gate_up, down, weights, experts, out, configs)], calls=4, replays=5)
    used = int(torch.bincount(experts.flatten()).count_nonzero())
    per_expert = (gate_up.nbytes + down.nbytes) / gate_up.shape[0]
    flops = 2.0 * experts.numel() * per_expert / 2
    limit = max(ceilings.bytes_us(used * per_expert), ceilings.flops_us(flops))
    label = f"experts {name} T{x.shape[0]}" + (f" {configs}" if configs else "")
    report.time(label, us, limit_us=limit, tflops=round(flops / us / 1e6, 1), candidate=configs is not None)

"""The experts of one layer in bf16, INT4 and FP8: checked, then timed beside the bytes they read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.kernel_sections.launch_cases import MOE_SHAPES
from benchmarks.kernel_sections.quantized_cases import PACKED_CANDIDATES, packed_label
from benchmarks.kernel_sections.timing import Ceilings, graph_us, sets_needed
from benchmarks.quantization_sections.products import int4_codes
from benchmarks.report import Report
from services.worker.kernels.expert_mlp import expert_mlp, weighted_sum
from services.worker.kernels.expert_routing import assign_blocks, route
from services.worker.kernels.expert_tiles import ExpertCodes, ExpertTiles, stack_tiles
from services.worker.kernels.fp8_rows import fp8_rows
from services.worker.kernels.packed_config import PackedConfig, packed_configs
from services.worker.kernels.packed_experts import down_product, gated_product, packed_expert_mlp
from services.worker.kernels.reference import experts as reference

TOKENS = (1, 8, 64, 512, 4096)
LIMITS = {"4-bit": 1e-2, "fp8": 6e-2}
"""Of errors; FP8 rounds activations too where an expert has many tokens."""
CHECKED_TOKENS = (1, 3, 64, 700)
BLOCKS_BESIDE = 4
"""Tiles are tried that hold up to so many times more, or less, pairs than an expert gets."""
SMALLEST, LARGEST = 16, 256
"""Pairs for which the smallest and the largest tiles are tried."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Meant:
    """The weights that codes stand for, expanded when one is asked for."""

    codes: list[ExpertCodes]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.codes), *self.codes[0].codes.shape

    def __getitem__(self, expert: int) -> torch.Tensor:
        one = self.codes[expert]
        groups = one.codes.float().unflatten(1, (one.scales.shape[1], -1)) * one.scales.unsqueeze(2)
        return (groups if one.offsets is None else groups + one.offsets.unsqueeze(2)).flatten(1)


@dataclass(frozen=True)
class Routing:
    """Where some tokens go."""

    x: torch.Tensor
    weights: torch.Tensor
    experts: torch.Tensor


@dataclass(frozen=True)
class Layer:
    """One form of a layer's experts."""

    name: str
    form: str
    gate_up: ExpertTiles
    down: ExpertTiles

    def expert_bytes(self) -> float:
        return (self.gate_up.nbytes + self.down.nbytes) / len(self.down.codes)


def measure(report: Report, ceilings: Ceilings, *, search: bool) -> Row:
    """
    Args:
        search: also time the tiles to choose from, and say which are the fastest.
    """
    checks, rows, candidates = [], [], []
    for name, (num_experts, top_k, hidden, intermediate) in MOE_SHAPES.items():
        gate_up = _random(num_experts, 2 * intermediate, hidden)
        down = _random(num_experts, hidden, intermediate)
        layers = []
        for form, make in (("4-bit", _four_bits), ("fp8", _eight_bits)):
            codes = [make(weight) for weight in gate_up], [make(weight) for weight in down]
            bits = 4 if form == "4-bit" else 8
            layer = Layer(name, form, stack_tiles(bits, codes[0]), stack_tiles(bits, codes[1]))
            meant = Meant(codes[0]), Meant(codes[1])
            checks += [_check(report, layer, top_k, tokens, *meant) for tokens in CHECKED_TOKENS]
            layers.append(layer)
            del codes, meant
        rows += [_time(report, ceilings, top_k, tokens, gate_up, down, layers) for tokens in TOKENS]
        del gate_up, down
        torch.cuda.empty_cache()
        for layer, tokens in itertools.product(layers if search else [], TOKENS):
            candidates.append(_search(report, ceilings, layer, top_k, tokens))
    return {"checks": checks, "experts": rows, "candidates": candidates}


def _random(num_experts: int, width: int, depth: int) -> torch.Tensor:
    return torch.randn(num_experts, width, depth, device="cuda", dtype=torch.bfloat16) * depth**-0.5


def _four_bits(weight: torch.Tensor) -> ExpertCodes:
    return ExpertCodes(*int4_codes(weight), order=None)


def _eight_bits(weight: torch.Tensor) -> ExpertCodes:
    rows = fp8_rows(weight)
    return ExpertCodes(rows.codes, rows.scales, offsets=None, order=None)


def _routing(num_experts: int, top_k: int, tokens: int, hidden: int) -> Routing:
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    return Routing(x, *route(torch.randn(tokens, num_experts, device="cuda"), top_k, renormalize=True))


def _routings(layer: Layer, top_k: int, tokens: int) -> list[Routing]:
    """So many that the weights of one are not in the cache when its turn comes again."""
    num_experts, hidden = len(layer.down.codes), layer.down.width
    first = _routing(num_experts, top_k, tokens, hidden)
    sets = sets_needed(int(_used(first) * layer.expert_bytes()), most=16)
    return [first, *(_routing(num_experts, top_k, tokens, hidden) for _ in range(sets - 1))]


def _used(routing: Routing) -> int:
    return int(torch.bincount(routing.experts.flatten()).count_nonzero())


def _check(report: Report, layer: Layer, top_k: int, tokens: int, gate_up: Any, down: Any) -> Row:
    """Against fp32 products of the weights as they are rounded."""
    routing = _routing(len(layer.down.codes), top_k, tokens, layer.down.width)
    given = routing.weights, routing.experts
    out = packed_expert_mlp(routing.x, layer.gate_up, layer.down, *given)
    want = reference.expert_mlp(routing.x.float(), gate_up, down, *given)
    error = float((out.double() - want.double()).norm() / want.double().norm())
    row: Row = {"name": f"{layer.name} {layer.form} T{tokens}", "error": error, "ok": error <= LIMITS[layer.form]}
    report.note(f"{'ok' if row['ok'] else 'WRONG'} {row['name']} error {error:.1e}")
    return row


def _time(
    report: Report, ceilings: Ceilings, top_k: int, tokens: int, gate_up: torch.Tensor, down: torch.Tensor,
    layers: Sequence[Layer],
) -> Row:  # fmt: skip
    routings = _routings(layers[0], top_k, tokens)
    used = sum(_used(routing) for routing in routings) / len(routings)
    flops_us = ceilings.flops_us(2.0 * tokens * top_k * (gate_up[0].numel() + down[0].numel()))
    runs: dict[str, tuple[list[Callable[[], Any]], float]] = {
        "bf16": (
            [partial(expert_mlp, r.x, gate_up, down, r.weights, r.experts) for r in routings],
            gate_up[0].nbytes + down[0].nbytes,
        )
    }
    for layer in layers:
        runs[layer.form] = (
            [partial(packed_expert_mlp, r.x, layer.gate_up, layer.down, r.weights, r.experts) for r in routings],
            layer.expert_bytes(),
        )
    load = tokens * top_k / len(down)
    chosen = {layer.form: packed_configs(load, layer.gate_up, layer.down, torch.bfloat16) for layer in layers}
    row: Row = {"name": layers[0].name, "tokens": tokens, "used_experts": round(used, 1)}
    for kind, (launches, nbytes) in runs.items():
        us = graph_us(launches, calls=8, replays=5)
        rounded = kind in chosen and chosen[kind][0].operands == "rounded"  # the matrix unit is twice as fast then
        limit_us = max(ceilings.bytes_us(used * nbytes), flops_us / (2 if rounded else 1))
        row[kind] = {"us": round(us, 2), "limit_us": round(limit_us, 2), "share": round(limit_us / us, 3)}
        row[kind]["gain"] = round(row["bf16"]["us"] / us, 2)
    row["tiles"] = " | ".join(", ".join(packed_label(config) for config in pair) for pair in chosen.values())
    report.note(
        f"{row['name']:14} T{tokens:<5} "
        + "  ".join(f"{k} {row[k]['us']:8.1f} us {row[k]['share']:6.1%} x{row[k]['gain']:.2f}" for k in runs)
        + f"  {row['tiles']}"
    )
    return row


def _search(report: Report, ceilings: Ceilings, layer: Layer, top_k: int, tokens: int) -> Row:
    """Each tile for each product; the fastest two with equal `block_m` are what a table should hold."""
    routings = _routings(layer, top_k, tokens)
    load = tokens * top_k / _used(routings[0])
    found: dict[str, dict[PackedConfig, float]] = {"gated": {}, "down": {}}
    for config in PACKED_CANDIDATES[layer.form]:
        if not min(load, LARGEST) / BLOCKS_BESIDE <= config.block_m <= max(SMALLEST, BLOCKS_BESIDE * load):
            continue
        launches: dict[str, list[Callable[[], Any]]] = {"gated": [], "down": []}
        for r in routings:
            blocks = assign_blocks(r.experts, len(layer.down.codes), config.block_m)
            inner = torch.randn(r.experts.numel(), layer.gate_up.width // 2, device="cuda", dtype=torch.bfloat16)
            launches["gated"].append(partial(gated_product, r.x, layer.gate_up, blocks, config, top_k))
            launches["down"].append(partial(_down, inner, layer.down, blocks, config, r.weights, torch.empty_like(r.x)))
        for product, some in launches.items():
            try:
                found[product][config] = graph_us(some, calls=8, replays=3)
            except Exception as fault:  # a tile that the compiler or the card refuses is a finding
                report.note(f"{product} {packed_label(config)}: {type(fault).__name__} {str(fault)[:80]}")
    title = f"{layer.name} {layer.form} T{tokens}"
    for product, times in found.items():
        shown = sorted(times.items(), key=lambda item: item[1])[:4]
        report.note(f"   {title} {product:5} " + ", ".join(f"{packed_label(c)} {us:.1f}" for c, us in shown))
    us, gated, down = min(
        (
            (found["gated"][first] + found["down"][second], first, second)
            for first, second in itertools.product(found["gated"], found["down"])
            if first.block_m == second.block_m
        ),
        key=lambda pair: pair[0],
    )
    report.note(f"BEST {title} {us:.1f} us: gated {packed_label(gated)}, down {packed_label(down)}")
    return {
        "name": title, "us": round(us, 2), "gated": packed_label(gated), "down": packed_label(down),
        "times": {product: {packed_label(c): round(t, 2) for c, t in some.items()} for product, some in found.items()},
    }  # fmt: skip


def _down(
    inner: torch.Tensor, tiles: ExpertTiles, blocks: Any, config: PackedConfig, weights: torch.Tensor, out: torch.Tensor
) -> None:
    weighted_sum(down_product(inner, tiles, blocks, config), weights, out)

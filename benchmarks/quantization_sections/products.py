"""The products of one Llama-3.1-8B layer in bf16, INT4 and FP8: checked, then timed beside the bytes they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.kernel_sections.quantized_cases import FP8_CANDIDATES, INT_CANDIDATES, LLAMA_8B_PRODUCTS, tile_label
from benchmarks.kernel_sections.timing import Ceilings, graph_us, sets_needed
from benchmarks.report import Report
from services.worker.kernels.arrivals import arrival_counters
from services.worker.kernels.device import sm_count
from services.worker.kernels.fp8_product import MOST_TOKENS as MOST_FP8_TOKENS
from services.worker.kernels.fp8_product import Fp8Config, fp8_config, fp8_product
from services.worker.kernels.fp8_rows import fp8_rows
from services.worker.kernels.int_config import IntConfig
from services.worker.kernels.int_product import chosen_config, expands, int_product
from services.worker.kernels.int_tiles import IntTiles, expand, make_tiles
from services.worker.models.triton_product import PLAIN_TOKENS, TritonFp8Product
from services.worker.quantization.weights import Fp8Weight

GROUP = 128
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
LIMITS = {"int4": 1e-2, "fp8": 5e-2, "fp8_mm": 5e-2, "fp8_sums": 1e-2}
KINDS = ("bf16", "int4", "fp8", "fp8_mm")
Row = dict[str, Any]
Rounded = tuple[torch.Tensor, torch.Tensor]
"""e4m3 [N, K] and scales [1, N]."""
Tile = IntConfig | Fp8Config


def measure(report: Report, ceilings: Ceilings, *, search: bool) -> Row:
    """
    Args:
        search: also time the tiles to choose from.
    """
    checks, rows, candidates = [], [], []
    for name, (width, depth) in LLAMA_8B_PRODUCTS.items():
        weight = torch.randn(width, depth, device="cuda", dtype=torch.bfloat16) * depth**-0.5
        int4, fp8 = int4_weight(weight), fp8_weight(weight)
        checks += [_check(report, name, tokens, int4, fp8) for tokens in (1, 3, 8, 16, 17, 33, 64, 100, 200, 256, 700)]
        for tokens in TOKENS:
            rows.append(_time(report, ceilings, name, tokens, weight, int4, fp8))
            if search and tokens in INT_CANDIDATES:
                candidates += _search_int4(report, ceilings, name, tokens, int4)
            if search and tokens in FP8_CANDIDATES:
                candidates += _search_fp8(report, ceilings, name, tokens, fp8)
        del weight, int4, fp8
        torch.cuda.empty_cache()
    return {"checks": checks, "products": rows, "layers": _layers(report, rows), "candidates": candidates}


def int4_weight(weight: torch.Tensor) -> IntTiles:
    return make_tiles(4, *int4_codes(weight))


def int4_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and offsets: the nearest of 16 steps between a group's least and greatest value."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(2), groups.amax(2)
    scales = ((high - low) / 15).clamp_min(1e-8)
    codes = ((groups - low.unsqueeze(2)) / scales.unsqueeze(2)).round().clamp(0, 15).to(torch.uint8).flatten(1)
    return codes, scales, low


def fp8_weight(weight: torch.Tensor) -> Rounded:
    rows = fp8_rows(weight)
    return rows.codes, rows.scales.T.contiguous()


def int4_product(x: torch.Tensor, tiles: IntTiles, arrivals: torch.Tensor) -> torch.Tensor:
    if expands(x, tiles):
        return F.linear(x, expand(tiles, x.dtype))
    return int_product(x, tiles, None, arrivals)


def chosen_fp8_product(weight: Rounded) -> TritonFp8Product:
    """As an engine multiplies."""
    return TritonFp8Product(Fp8Weight(weight[0], weight[1].T))


def fp8_mm(x: torch.Tensor, weight: Rounded) -> torch.Tensor:
    """As torch multiplies."""
    rows = fp8_rows(x)
    out: torch.Tensor = torch._scaled_mm(
        rows.codes, weight[0].T, scale_a=rows.scales, scale_b=weight[1], out_dtype=x.dtype, use_fast_accum=True
    )
    return out


def _check(report: Report, name: str, tokens: int, int4: IntTiles, fp8: Rounded) -> Row:
    """Against fp64 products of the weights as they are rounded; `fp8_sums`: of the activations as they are, too."""
    x = torch.randn(tokens, int4.codes.shape[1], device="cuda", dtype=torch.bfloat16)
    arrivals = arrival_counters(x.device)
    rows = fp8_rows(x)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "int4": partial(int_product, x, int4, None, arrivals),
        "fp8": partial(chosen_fp8_product(fp8), x, None),
        "fp8_mm": partial(fp8_mm, x, fp8),
        "fp8_sums": partial(fp8_product, rows.codes, rows.scales, *fp8, None, arrivals, x.dtype),
    }
    weight = (fp8[0].float() * fp8[1].T).double()
    wants = dict.fromkeys(("fp8", "fp8_mm"), x.double() @ weight.T)
    wants["int4"] = x.double() @ expand(int4, torch.float32).double().T
    wants["fp8_sums"] = (rows.codes.double() * rows.scales.double()) @ weight.T
    row: Row = {"name": f"{name} T{tokens}", "repeatable": True}
    for kind, run in runs.items():
        out = run()
        row[kind] = float((out.double() - wants[kind]).norm() / wants[kind].norm())
        row["repeatable"] &= kind == "fp8_mm" or torch.equal(run(), out)
    row["repeatable"] &= not arrivals.any()
    row["ok"] = row["repeatable"] and all(row[kind] <= limit for kind, limit in LIMITS.items())
    if not row["ok"]:
        report.note(f"WRONG {row}")
    return row


def _time(
    report: Report, ceilings: Ceilings, name: str, tokens: int, weight: torch.Tensor, int4: IntTiles,
    fp8: Rounded,
) -> Row:  # fmt: skip
    x = torch.randn(tokens, weight.shape[1], device="cuda", dtype=torch.bfloat16)
    arrivals = arrival_counters(x.device)
    flops_us = ceilings.flops_us(2.0 * tokens * weight.numel())
    int4_bytes, fp8_bytes = int4.codes.nbytes + int4.table.nbytes, fp8[0].nbytes
    runs: dict[str, tuple[list[Callable[[], Any]], float]] = {
        "bf16": ([partial(F.linear, x, w) for w in _copies(weight)], weight.nbytes),
        "int4": ([partial(int4_product, x, t, arrivals) for t in _tiles(int4)], int4_bytes),
        "fp8": ([partial(chosen_fp8_product((w, fp8[1])), x, None) for w in _copies(fp8[0])], fp8_bytes),
        "fp8_mm": ([partial(fp8_mm, x, (w, fp8[1])) for w in _copies(fp8[0])], fp8_bytes),
    }
    expanding = make_tiles(8, fp8[0], fp8[1].T.contiguous(), None)
    if not expands(x, expanding):  # weights of 8 bits, activations of 16
        runs["fp8x16"] = [partial(int_product, x, t, None, arrivals) for t in _tiles(expanding)], fp8_bytes
    row: Row = {"name": name, "tokens": tokens}
    for kind, (launches, nbytes) in runs.items():
        us = graph_us(launches)
        limit_us = max(ceilings.bytes_us(nbytes), flops_us / (2 if kind in ("fp8", "fp8_mm") else 1))
        row[kind] = {"us": round(us, 2), "mb": round(nbytes / 1e6, 1), "share": round(limit_us / us, 3)}
    row["int4_gain"], row["fp8_gain"] = (round(row["bf16"]["us"] / row[kind]["us"], 2) for kind in ("int4", "fp8"))
    if not expands(x, int4):
        row["tile"] = tile_label(chosen_config(x, int4))
    if PLAIN_TOKENS < tokens <= MOST_FP8_TOKENS:
        row["fp8_tile"] = tile_label(fp8_config(tokens, *fp8[0].shape, sm_count(x.device)))
    report.note(
        f"{name:8} T{tokens:<5} " + "  ".join(f"{k} {row[k]['us']:8.1f} us {row[k]['share']:6.1%}" for k in runs)
        + f"  gains {row['int4_gain']:.2f} {row['fp8_gain']:.2f}  {row.get('tile', '')}  {row.get('fp8_tile', '')}"
    )  # fmt: skip
    return row


def _search_int4(report: Report, ceilings: Ceilings, name: str, tokens: int, int4: IntTiles) -> list[Row]:
    x = torch.randn(tokens, int4.codes.shape[1], device="cuda", dtype=torch.bfloat16)
    arrivals = arrival_counters(x.device)
    limit_us = ceilings.bytes_us(int4.codes.nbytes + int4.table.nbytes)
    tiles = _tiles(int4)
    runs: dict[Tile, list[Callable[[], Any]]] = {
        config: [partial(int_product, x, t, None, arrivals, config) for t in tiles] for config in INT_CANDIDATES[tokens]
    }
    return _search(report, f"int4 {name}", tokens, limit_us, runs)


def _search_fp8(report: Report, ceilings: Ceilings, name: str, tokens: int, fp8: Rounded) -> list[Row]:
    """Without the rounding of activations, whose time is told beside."""
    x = torch.randn(tokens, fp8[0].shape[1], device="cuda", dtype=torch.bfloat16)
    arrivals = arrival_counters(x.device)
    rounded, copies = fp8_rows(x), _copies(fp8[0])
    runs: dict[Tile, list[Callable[[], Any]]] = {
        config: [
            partial(fp8_product, rounded.codes, rounded.scales, w, fp8[1], None, arrivals, x.dtype, config)
            for w in copies
        ]
        for config in FP8_CANDIDATES[tokens]
    }
    report.note(f"   fp8 {name} T{tokens} rounding of activations {graph_us([partial(fp8_rows, x)]):8.2f} us")
    return _search(report, f"fp8 {name}", tokens, ceilings.bytes_us(fp8[0].nbytes), runs)


def _search(
    report: Report, name: str, tokens: int, limit_us: float, runs: dict[Tile, list[Callable[[], Any]]]
) -> list[Row]:  # fmt: skip
    found = []
    for config, launches in runs.items():
        try:
            us = graph_us(launches)
        except Exception as fault:  # a tile that the compiler or the card refuses is a finding
            report.note(f"{name} T{tokens} {tile_label(config)}: {type(fault).__name__} {str(fault)[:80]}")
            continue
        found.append({"name": name, "tokens": tokens, "tile": tile_label(config), "us": round(us, 2)})
    for row in sorted(found, key=lambda row: row["us"]):
        report.note(f"   {name} T{tokens} {row['tile']:34} {row['us']:8.2f} us {limit_us / row['us']:6.1%} of bytes")
    return found


def _layers(report: Report, rows: list[Row]) -> list[Row]:
    """All products of a layer together."""
    layers = []
    for tokens in TOKENS:
        mine = [row for row in rows if row["tokens"] == tokens]
        sums = {kind: sum(row[kind]["us"] for row in mine) for kind in KINDS}
        layers.append(
            {"tokens": tokens, **{kind: round(us, 1) for kind, us in sums.items()},
             "int4_gain": round(sums["bf16"] / sums["int4"], 2), "fp8_gain": round(sums["bf16"] / sums["fp8"], 2)}
        )  # fmt: skip
    report.table("products of a layer, us", list(layers[0]), [list(layer.values()) for layer in layers])
    return layers


def _copies(weight: torch.Tensor) -> list[torch.Tensor]:
    return [weight, *(weight.clone() for _ in range(sets_needed(weight.nbytes) - 1))]


def _tiles(tiles: IntTiles) -> list[IntTiles]:
    return [dataclasses.replace(tiles, codes=codes) for codes in _copies(tiles.codes)]

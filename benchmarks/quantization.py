"""Quantized weights on one GPU against bf16: the products of a Llama-3.1-8B layer, the experts of a layer of
Mixtral-8x7B and of Qwen3-30B-A3B, and whole engines of Llama's shape.

    python -m benchmarks.quantization [--sections products experts engines] [--search]
    python -m benchmarks.quantization --sections cpu                  # the default model, on a processor

Partial results are printed as they come; one JSON document is last. The whole run stays under four minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Report

SECTIONS = ("products", "experts", "engines", "cpu")
KERNELS = {"products": ["int4", "fp8 product", "fp8 rows"], "experts": ["packed experts"]}
"""Launch cases of a section, by what their names contain."""
COMPILE = [sys.executable, "-m", "benchmarks.kernel_sections.compile_sm90", "--early"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS[:-1]))
    parser.add_argument("--search", action="store_true", help="also time the tiles that the table was chosen from")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="rows of a decode step, for engines")
    parser.add_argument("--threads", type=int, default=2, help="for cpu")
    parser.add_argument("--no-precompile", action="store_true", help="do not fill Triton's cache in parallel first")
    args = parser.parse_args()
    report = Report("quantization", args)
    started_s = time.monotonic()
    if "cpu" in args.sections:
        from benchmarks.quantization_sections import cpu

        with tempfile.TemporaryDirectory(prefix="rhizome-quantization-") as folder:
            report.finish({"cpu": cpu.measure(report, Path(folder), args.threads)})
        return
    for section in [] if args.no_precompile else [name for name in KERNELS if name in args.sections]:
        skip = [] if args.search else ["--skip", "candidate"]
        for match in KERNELS[section]:
            done = subprocess.run(
                [*COMPILE, "--match", match, *skip], cwd=Path(__file__).parents[1], capture_output=True, text=True
            )
            report.note(f"{match}: compiled after {time.monotonic() - started_s:.0f} s, exit {done.returncode}")
    import torch

    from benchmarks.kernel_sections.timing import measure_ceilings
    from services.worker.kernels.overlap import launch_early

    ceilings = measure_ceilings()
    torch.cuda.empty_cache()
    figures: dict[str, Any] = {
        "card": {
            "device": torch.cuda.get_device_name(),
            "copy_gb_s": round(ceilings.bytes_per_us / 1e3, 1),
            "matrix_tflops": round(ceilings.flops_per_us / 1e6, 1),
        }
    }
    report.note(f"card: {figures['card']}")
    if "products" in args.sections:
        from benchmarks.quantization_sections import products

        launch_early()  # as in an engine with such weights
        figures["products"] = products.measure(report, ceilings, search=args.search)
    if "experts" in args.sections:
        from benchmarks.quantization_sections import experts

        figures["experts"] = experts.measure(report, ceilings, search=args.search)
    if "engines" in args.sections:
        from benchmarks.quantization_sections import engines

        with tempfile.TemporaryDirectory(prefix="rhizome-quantization-") as folder:
            figures["engines"] = engines.measure(report, ceilings, Path(folder), args.batches)
    figures["wall_s"] = round(time.monotonic() - started_s, 1)
    report.finish(figures)


if __name__ == "__main__":
    main()

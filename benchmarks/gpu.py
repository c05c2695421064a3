"""The engine on one GPU: the card's ceilings, decode and prefill steps, and the whole system over NATS. On several:
`--sections tp`.

Random weights in the shapes of Llama-3.1-8B and Qwen3-0.6B. Every figure stands next to what the card's memory or
matrix rate allows. Partial results are printed as they come; one JSON document is last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_sections.workloads import WORKLOADS
from benchmarks.report import Report

SECTIONS = ("offline", "gateway", "system", "shared", "decode", "tp", "soak")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS[:5]))
    parser.add_argument("--shapes", nargs="+", choices=("8B", "0.6B"), default=["0.6B", "8B"], help="of decode")
    parser.add_argument("--backends", nargs="+", choices=("triton", "flashinfer", "torch"), default=["triton", "torch"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256], help="rows of a decode step")
    parser.add_argument("--torch-batches", type=int, nargs="+", default=[1, 64], help="the same with operators")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3], help="of the pipeline, for system")
    parser.add_argument("--system-batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--system-shape", choices=("8B", "0.6B"), default="0.6B")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="of offline")
    parser.add_argument("--offline-shapes", nargs="+", choices=("8B", "0.6B"), default=["8B"])
    parser.add_argument("--offline-depth", type=int, default=2)
    parser.add_argument(
        "--worker-flags",
        nargs="*",
        default=[],
        metavar="FLAG",
        help="more flags for the worker of offline and system, without their dashes: attention-backend=flashinfer",
    )
    parser.add_argument("--tp-sizes", type=int, nargs="+", default=[1, 2], help="ranks, for tp: one after the other")
    parser.add_argument("--tp-shape", choices=("8B", "0.6B"), default="8B")
    parser.add_argument("--gateway-workloads", nargs="+", choices=WORKLOADS, default=["sharegpt-like"])
    parser.add_argument("--soak-s", type=float, default=180.0, help="seconds of soak, which is not run by default")
    parser.add_argument("--budget-s", type=float, default=330.0, help="no decode section begins after this")
    parser.add_argument("--no-precompile", action="store_true", help="do not fill Triton's cache in parallel first")
    args = parser.parse_args()
    report = Report("gpu", args)
    started_s = time.monotonic()
    if not args.no_precompile:
        _precompile(report)
    figures: dict[str, Any] = {"card": {}, "offline": [], "system": [], "steps": [], "tp": {}, "left_out": []}
    with tempfile.TemporaryDirectory(prefix="rhizome-gpu-") as folder:
        _measure(report, args, Path(folder), figures, started_s)
    figures["wall_s"] = round(time.monotonic() - started_s, 1)
    report.finish(figures)


def _precompile(report: Report) -> None:
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernel_sections.compile_sm90", "--match", "D128", "--skip", "candidate"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    took_s = time.monotonic() - started_s
    report.note(f"kernels compiled in {took_s:.0f} s, exit {done.returncode} {done.stderr[-300:]}")


def _measure(report: Report, args: argparse.Namespace, folder: Path, figures: dict[str, Any], started_s: float) -> None:
    """The system first, while this process holds no memory of the device."""
    flags = [f"--{flag}" for flag in args.worker_flags]
    if "offline" in args.sections:
        from benchmarks.gpu_sections import offline

        for shape in args.offline_shapes:
            figures["offline"] += offline.measure(report, folder, shape, args.workloads, args.offline_depth, flags)
    if "system" in args.sections:
        from benchmarks.gpu_sections import system

        figures["system"] = system.measure(report, folder, args.system_shape, args.depths, args.system_batches, flags)
    if "gateway" in args.sections:
        from benchmarks.gpu_sections import gateway

        figures["gateway"] = gateway.measure(report, folder, "8B", args.gateway_workloads, flags)
    if "soak" in args.sections:
        from benchmarks.gpu_sections import soak

        figures["soak"] = soak.measure(report, folder, args.system_shape, args.soak_s, flags)
    if "tp" in args.sections:
        from benchmarks.gpu_sections import tensor_parallel

        figures["tp"] = tensor_parallel.measure(report, folder, args.tp_shape, args.tp_sizes, args.batches)
    if not {"decode", "shared"} & set(args.sections):
        return
    import torch

    from benchmarks.gpu_sections import shared_prefix, steps
    from benchmarks.kernel_sections.timing import measure_ceilings

    ceilings = measure_ceilings()
    torch.cuda.empty_cache()
    figures["card"] = {
        "device": torch.cuda.get_device_name(),
        "copy_gb_s": round(ceilings.bytes_per_us / 1e3, 1),
        "matrix_tflops": round(ceilings.flops_per_us / 1e6, 1),
    }
    report.note(f"card: {figures['card']}")
    if "shared" in args.sections:
        figures["shared"] = shared_prefix.measure(report, ceilings, folder, "8B", "triton")
    if "decode" not in args.sections:
        return
    for backend in args.backends:
        batches = args.torch_batches if backend == "torch" else args.batches
        for shape in args.shapes:
            if time.monotonic() - started_s > args.budget_s:
                figures["left_out"].append(f"{shape} {backend}")
                report.note(f"{shape} {backend}: left out, the time is up")
                continue
            figures["steps"].append(steps.measure(report, ceilings, folder, shape, backend, batches))


if __name__ == "__main__":
    main()

"""Check every kernel on this GPU against its reference and time it against the card's limits; one JSON document last.

    python -m benchmarks.kernels [--sections decode,extend,...] [--out FILE] [--no-precompile] [--compile-only]

With --compile-only no GPU is needed: every kernel is compiled for Hopper and must not spill registers.

Sections run in processes of their own, so that a fault in one leaves the others; the whole run stays under four
minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMPILE = [sys.executable, "-m", "benchmarks.kernel_sections.compile_sm90"]
SECTIONS = {"elementwise": 40, "decode": 60, "extend": 60, "sampling": 60, "experts": 60, "flashinfer_peer": 120}
"""Seconds each may take."""
TOTAL_S = 230.0


def run_section(name: str, copy_rate: float, matrix_rate: float) -> None:
    """In a child: run one section, print its report."""
    import torch

    from benchmarks.kernel_sections.timing import Ceilings, Report

    torch.manual_seed(int(time.time()))
    report = Report()
    try:
        importlib.import_module(f"benchmarks.kernel_sections.{name}").run(report, Ceilings(copy_rate, matrix_rate))
    except Exception as fault:  # a section reports what it had
        import traceback

        report.errors.append(f"{fault!r}\n{traceback.format_exc()[-1500:]}")
    print("\n" + json.dumps(report.as_dict()))


def ceilings() -> dict[str, Any]:
    """Child: the card and its limits."""
    import torch
    import triton

    from benchmarks.kernel_sections.timing import measure_ceilings

    found = measure_ceilings()
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "sms": properties.multi_processor_count, "torch": torch.__version__,
        "triton": triton.__version__, "copy_gb_s": found.bytes_per_us / 1e3, "matrix_tflops": found.flops_per_us / 1e6,
    }  # fmt: skip


def child(arguments: list[str], timeout_s: float) -> dict[str, Any]:
    """Run this module again; its last line is the answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.kernels", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        return {"checks": [], "timings": [], "errors": [f"over {timeout_s:.0f} s"]}
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found
    except (IndexError, ValueError):
        return {"checks": [], "timings": [], "errors": [f"exit {done.returncode}: {done.stderr[-1500:]}"]}


def show(name: str, found: dict[str, Any]) -> None:
    """The table of one section."""
    wrong = [check for check in found["checks"] if not check["ok"]]
    print(f"== {name}: {len(found['checks']) - len(wrong)}/{len(found['checks'])} checks ok")
    for check in wrong:
        print(f"   WRONG {check}")
    for row in found["timings"]:
        share = f"{row['share']:6.1%} of limit" if "share" in row else ""
        tflops = f"{row['tflops']:7.1f} TFLOP/s" if "tflops" in row else ""
        print(f"   {row['name']:72} {row['us']:10.2f} us {share} {tflops}")
    for error in found["errors"]:
        print(f"   ERROR {error}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    parser.add_argument("--no-precompile", action="store_true", help="do not fill Triton's cache in parallel first")
    parser.add_argument("--compile-only", action="store_true", help="compile for Hopper, check for spills, and stop")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--copy-rate", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--matrix-rate", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile_only:
        sys.exit(subprocess.run([*COMPILE, "--skip", "candidate"], cwd=ROOT).returncode)
    if options.child == "ceilings":
        print("\n" + json.dumps(ceilings()))
        return
    if options.child:
        run_section(options.child, options.copy_rate, options.matrix_rate)
        return
    start = time.monotonic()
    if not options.no_precompile:
        built = subprocess.run(COMPILE, capture_output=True, text=True, cwd=ROOT)
        print(f"precompile: exit {built.returncode}, {time.monotonic() - start:.0f} s {built.stderr[-500:]}")
    card = child(["--child", "ceilings"], 60)
    print(json.dumps(card))
    rates = ["--copy-rate", str(card["copy_gb_s"] * 1e3), "--matrix-rate", str(card["matrix_tflops"] * 1e6)]
    document: dict[str, Any] = {"card": card, "sections": {}}
    for name in options.sections.split(","):
        left = TOTAL_S - (time.monotonic() - start)
        begun = time.monotonic()
        found = child(["--child", name, *rates], max(1.0, min(SECTIONS[name], left)))
        found["wall_s"] = round(time.monotonic() - begun, 1)
        document["sections"][name] = found
        show(name, found)
    document["wall_s"] = round(time.monotonic() - start, 1)
    if options.out:
        options.out.write_text(json.dumps(document))
    print(json.dumps(document))


if __name__ == "__main__":
    main()

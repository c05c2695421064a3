"""Images through the whole system: time to first token by size and number, images a second under load, memory over
thousands of images, and transformers on the same device. Random weights.

    python -m benchmarks.vision                                     # a small model on the CPU
    python -m benchmarks.vision --device cuda --shapes Qwen2-VL-7B LLaVA-NeXT-8B

One JSON document is last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks.report import Report
from benchmarks.stack import Deployment
from benchmarks.vision_sections import latency, load, memory, transformers_peer
from benchmarks.vision_sections.shapes import SHAPES, write_vlm_shape

SECTIONS = ("latency", "load", "memory", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small"])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--sides", type=int, nargs="+", help="of images; default: 224 and 448, on a GPU up to 2560")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4], help="of images in a request")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=0, help="of load; default: 64, on a GPU 512")
    parser.add_argument("--clients", type=int, default=0, help="of load; default: 8, on a GPU 64")
    parser.add_argument("--memory-images", type=int, default=2000)
    parser.add_argument("--flags", nargs="*", default=[], help="more flags of the launcher, without their dashes")
    parser.add_argument("--quick", action="store_true", help="shows that it runs, proves little")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = args.device == "cuda"
    args.sides = args.sides or ([448, 1024, 2560] if gpu else [224, 448])
    args.requests, args.clients = args.requests or (512 if gpu else 64), args.clients or (64 if gpu else 8)
    if args.quick:
        args.sides, args.counts, args.repeats, args.requests, args.memory_images = args.sides[:1], [1], 2, 16, 100
    if args.peer:
        _peer(args)
        return
    report = Report("vision", args)
    started_s = time.monotonic()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rhizome-vision-") as folder:
        for shape in args.shapes:
            figures[shape] = _measure(report, args, shape, write_vlm_shape(shape, Path(folder) / shape))
    figures["wall_s"] = round(time.monotonic() - started_s, 1)
    report.finish(figures)


def _measure(report: Report, args: argparse.Namespace, shape: str, model: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    flags = [f"--{flag}" for flag in args.flags]
    if args.device == "cuda":
        flags += ["--device=cuda", "--vision-device=cuda", "--context-length=16384", "--mem-fraction-static=0.8"]
    started_s = time.perf_counter()
    if {"latency", "load", "memory"} & set(args.sections):
        with Deployment(f"--model-path={model}", "--load-format=dummy", *flags) as deployment:
            report.note(f"{shape}: ready after {time.perf_counter() - started_s:.1f} s")
            if "latency" in args.sections:
                figures["latency"] = latency.measure(report, deployment, args.sides, args.counts, args.repeats)
            if "load" in args.sections:
                figures["load"] = load.measure(
                    report, deployment, args.sides[0], args.requests, args.clients, 64 if args.device == "cuda" else 16
                )
            if "memory" in args.sections:
                figures["memory"] = memory.measure(report, deployment, args.sides[0], args.memory_images, args.clients)
    if "transformers" in args.sections:
        figures["transformers"] = _run_peer(report, args, model)
    return figures


def _run_peer(report: Report, args: argparse.Namespace, model: Path) -> Any:
    """In a process of its own: it holds the device's memory until it ends."""
    argv = [
        sys.executable, "-m", "benchmarks.vision", f"--device={args.device}", f"--peer={model}", "--sides",
        *map(str, args.sides), f"--repeats={args.repeats}",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        report.note(f"transformers failed: {done.stderr[-1500:]}")
        return None
    rows = orjson.loads(done.stdout.splitlines()[-1])["figures"]["rows"]
    report.table(
        "transformers, time to first token of one image, ms", ("side", "tokens", "TTFT", "of which processor"),
        [(r["side"], r["prompt_tokens"], r["ttft_ms"], r["prepare_ms"]) for r in rows],
    )  # fmt: skip
    return rows


def _peer(args: argparse.Namespace) -> None:
    report = Report("vision-transformers", args)
    rows = transformers_peer.measure(report, Path(args.peer), args.sides, args.repeats, args.device)
    report.finish({"rows": rows})


if __name__ == "__main__":
    main()

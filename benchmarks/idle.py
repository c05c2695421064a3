"""What the whole system takes while nobody uses it: CPU seconds a minute and memory of every process."""

from __future__ import annotations

import argparse
import time
from typing import Any

import psutil

from benchmarks.processes import CpuMeter, memory
from benchmarks.report import Report
from benchmarks.stack import Deployment, model_folder

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long nothing is asked")
    parser.add_argument("--settle-s", type=float, default=5.0, help="wait before, so that start-up work has ended")
    parser.add_argument("--model-path", default="SmolLM2-135M-Instruct")
    parser.add_argument("--quick", action="store_true", help="10 seconds")
    args = parser.parse_args()
    if args.quick:
        args.seconds = 10.0
    report = Report("idle", args)
    begin_s = time.monotonic()
    with Deployment(f"--model-path={model_folder(args.model_path)}") as deployment:
        started_s = time.monotonic() - begin_s
        name = deployment.get("/v1/models")["data"][0]["id"]
        deployment.post("/v1/completions", {"model": name, "prompt": "One, two,", "max_tokens": 16})
        time.sleep(args.settle_s)
        rows = watch(deployment.processes(), args.seconds)
    total = {"name": "all", **{k: sum(r[k] for r in rows) for k in ("cpu_s_per_minute", "rss_mib", "pss_mib")}}
    report.table(
        f"idle for {args.seconds:g} s, after one request",
        ["process", "CPU s/min", "PSS MiB", "RSS MiB"],
        [[r["name"], r["cpu_s_per_minute"], r["pss_mib"], r["rss_mib"]] for r in [*rows, total]],
    )
    report.finish({"ready_after_s": round(started_s, 2), "processes": rows, "total": total})


def watch(processes: dict[str, psutil.Process], seconds: float) -> list[dict[str, Any]]:
    """CPU over `seconds`, memory at their end."""
    meter = CpuMeter(processes)
    time.sleep(seconds)
    used, elapsed_s = meter.read(), meter.elapsed_s
    rows = []
    for name, process in processes.items():
        now = memory(process)
        rows.append(
            {
                "name": name,
                "cpu_s_per_minute": round(used[name] / elapsed_s * 60, 3),
                "pss_mib": round(now.pss / MIB, 1),
                "rss_mib": round(now.rss / MIB, 1),
            }
        )
    return rows


if __name__ == "__main__":
    main()

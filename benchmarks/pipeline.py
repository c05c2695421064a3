"""What sending steps ahead buys: pipeline depth 2 against 1, alternating in one run.

With a scripted worker whose steps take a fixed time (a device that costs no CPU), the time the bus and the scheduler
take shows as the difference to the ideal; with the real model it shows against what this machine's CPU can do.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from benchmarks import load
from benchmarks.report import Report
from benchmarks.stack import Deployment, ScriptedDeployment, model_folder

Variant = Deployment | ScriptedDeployment


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="times that the depths take turns")
    parser.add_argument("--step-ms", type=float, nargs="+", default=[5.0, 20.0], help="scripted steps")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=200, help="tokens per stream with the scripted worker")
    parser.add_argument("--model-tokens", type=int, default=32, help="the same with the model; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model-path", default="SmolLM2-135M-Instruct")
    parser.add_argument("--quick", action="store_true", help="two rounds, scripted steps of 5 ms only")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.step_ms, args.tokens, args.model_tokens = 2, [5.0], 100, 0
    report = Report("pipeline", args)
    model = model_folder(args.model_path)
    results = []
    for step_ms in args.step_ms:
        variants: dict[int, Variant] = {
            d: ScriptedDeployment(model, worker=[f"--step-ms={step_ms}"], scheduler=[f"--pipeline-depth={d}"])
            for d in args.depths
        }
        results += take_turns(report, f"scripted, {step_ms:g} ms", variants, model, args, args.tokens)
    if args.model_tokens:
        common = (f"--model-path={model}", f"--num-threads={args.threads}")
        variants = {d: Deployment(*common, f"--pipeline-depth={d}") for d in args.depths}
        results += take_turns(report, "model", variants, model, args, args.model_tokens)
    show(report, results)
    report.finish({"variants": results})


def take_turns(
    report: Report, engine: str, variants: dict[int, Variant], model: Path, args: argparse.Namespace, tokens: int
) -> list[dict[str, Any]]:
    """All depths up at once, one of them busy at a time."""
    rates: dict[int, list[float]] = {depth: [] for depth in variants}
    with ExitStack() as stack:
        for variant in variants.values():
            stack.enter_context(variant)
        for turn in range(args.rounds + 1):
            for depth, variant in variants.items():
                prompts = load.make_prompts(model, [32] * args.streams, seed=turn)
                done = uvloop.run(run(variant, prompts, args.streams, tokens))
                if turn:  # the first warms up
                    rates[depth].append(done.tokens_per_s)
        stages = {depth: variant.scheduler()["step_ms"] for depth, variant in variants.items()}
    report.note(f"{engine}: " + ", ".join(f"depth {d} {median(r):.1f} tokens/s" for d, r in rates.items()))
    return [
        {"engine": engine, "depth": d, "tokens_per_s": median(r), "runs": r, "step_ms": stages[d]}
        for d, r in rates.items()
    ]


async def run(variant: Variant, prompts: list[load.Prompt], streams: int, tokens: int) -> load.Load:
    name = variant.get("/v1/models")["data"][0]["id"]
    return await load.run(variant.port, prompts, concurrency=streams, max_tokens=tokens, model=name)


def show(report: Report, results: list[dict[str, Any]]) -> None:
    base = {r["engine"]: r["tokens_per_s"] for r in reversed(results)}
    for r in results:
        r["times_first_depth"] = round(r["tokens_per_s"] / base[r["engine"]], 3)
    report.table(
        "tokens per second, median of the rounds",
        ["engine", "depth", "tokens/s", "least", "most", "x"],
        [[r["engine"], r["depth"], r["tokens_per_s"], min(r["runs"]), max(r["runs"]), r["times_first_depth"]]
         for r in results],
    )  # fmt: skip
    stages = list(results[0]["step_ms"])
    report.table(
        "where a step's time goes in the scheduler, mean milliseconds",
        ["engine", "depth", *stages],
        [[r["engine"], r["depth"], *(r["step_ms"].get(s) for s in stages)] for r in results],
    )


if __name__ == "__main__":
    main()

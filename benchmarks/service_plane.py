"""How many tokens a second the services can stream when the model costs nothing.

Gateway, tokenizer, scheduler and NATS are real processes; the worker answers every step at once with scripted tokens.
Every token is one server-sent event, read by a client in this process, which shares the machine.
"""

from __future__ import annotations

import argparse
from typing import Any

import psutil
import uvloop

from benchmarks import load
from benchmarks.processes import CpuMeter
from benchmarks.report import Report
from benchmarks.stack import ScriptedDeployment, model_folder

PROMPT_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_plane", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256], help="concurrent streams, each level")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens per level (at most 2,000 a stream)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each level; the median is reported")
    parser.add_argument(
        "--paced-step-ms", type=float, default=25.0, help="time per step in the second part; 0 leaves it out"
    )
    parser.add_argument("--pipeline-depth", type=int, default=2, help="of the scheduler")
    parser.add_argument("--model-path", default="SmolLM2-135M-Instruct", help="model whose tokenizer is used")
    parser.add_argument("--quick", action="store_true", help="one short run of each level")
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.repeat = 20_000, 1
    report = Report("service_plane", args)
    flat_out = uvloop.run(measure(args, report, args.streams, step_ms=0.0))
    show(report, "flat out: the worker answers at once", flat_out)
    out = {"flat_out": flat_out}
    if args.paced_step_ms:
        out["paced"] = uvloop.run(measure(args, report, [max(args.streams)], step_ms=args.paced_step_ms))
        show(report, f"paced: a step takes {args.paced_step_ms:g} ms", out["paced"])
    report.finish(out)


async def measure(args: argparse.Namespace, report: Report, levels: list[int], *, step_ms: float) -> dict[str, Any]:
    """One deployment, every level on it."""
    model = model_folder(args.model_path)
    worker = [f"--max-rows={max(levels)}", f"--step-ms={step_ms}"]
    out: list[dict[str, Any]] = []
    with ScriptedDeployment(model, worker=worker, scheduler=[f"--pipeline-depth={args.pipeline_depth}"]) as server:
        name = server.get("/v1/models")["data"][0]["id"]
        meter = CpuMeter({**server.processes(), "client": psutil.Process()})
        seeds = iter(range(10_000))
        await run(server, model, name, streams=min(64, max(levels)), tokens=50, seed=next(seeds))  # warm up
        for streams in levels:
            tokens = min(2000, max(20, args.tokens // streams))
            runs = []
            for _ in range(args.repeat):
                meter.start()
                done = await run(server, model, name, streams=streams, tokens=tokens, seed=next(seeds))
                runs.append(figures(done, meter))
            out.append(sorted(runs, key=lambda r: r["tokens_per_s"])[len(runs) // 2])
            report.note(f"{streams} streams: {out[-1]['tokens_per_s']:,.0f} tokens/s")
        return {"step_ms": step_ms, "levels": out, "scheduler_step_ms": server.scheduler()["step_ms"]}


async def run(server: ScriptedDeployment, model: Any, name: str, *, streams: int, tokens: int, seed: int) -> load.Load:
    prompts = load.make_prompts(model, [PROMPT_TOKENS] * streams, seed)
    return await load.run(server.port, prompts, concurrency=streams, max_tokens=tokens, model=name)


def figures(done: load.Load, meter: CpuMeter) -> dict[str, Any]:
    """Rates of one run; CPU seconds per 1,000 tokens by process."""
    cpu = {name: used / done.tokens * 1e3 for name, used in meter.read().items()}
    return {**done.figures(), "cpu_s_per_1000_tokens": {n: round(s, 5) for n, s in cpu.items()} | {
        "all": round(sum(cpu.values()), 5)}}  # fmt: skip


def show(report: Report, title: str, measured: dict[str, Any]) -> None:
    levels = measured["levels"]
    report.table(
        title,
        ["streams", "tokens/s", "TTFT p50 ms", "TTFT p99 ms", "gap p50 ms", "gap p99 ms", "events/token", "events/read",
         "errors"],
        [
            [level["concurrency"], level["tokens_per_s"], level["ttft_ms"]["p50"], level["ttft_ms"]["p99"],
             level["itl_ms"]["p50"], level["itl_ms"]["p99"], level["events_per_token"], level["events_per_read"],
             level["errors"]]
            for level in levels
        ],
    )  # fmt: skip
    names = list(levels[0]["cpu_s_per_1000_tokens"])
    report.table(
        "CPU milliseconds per 1,000 tokens",
        ["streams", *names],
        [[level["concurrency"], *(level["cpu_s_per_1000_tokens"][n] * 1e3 for n in names)] for level in levels],
    )
    stages = measured["scheduler_step_ms"]
    report.table("scheduler, mean over all steps", ["stage", "ms per step"], [[k, v] for k, v in stages.items()])


if __name__ == "__main__":
    main()

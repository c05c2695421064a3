"""What the radix cache saves: requests that share a long prefix, with the cache and without it, in one run.

Two deployments are up at the same time and measured one after the other. First one request alone, twice: its first
time is a miss, its second a full hit. Then all requests, each with the shared prefix and an end of its own.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import load
from benchmarks.report import Report
from benchmarks.stack import Deployment, model_folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix", description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prefix-tokens", type=int, default=1500)
    parser.add_argument("--own-tokens", type=int, default=32, help="tokens of each prompt after the shared prefix")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--singles", type=int, default=3, help="measurements of a single miss and hit")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model-path", default="SmolLM2-135M-Instruct")
    parser.add_argument("--quick", action="store_true", help="8 requests, prefix of 300 tokens")
    args = parser.parse_args()
    if args.quick:
        args.requests, args.prefix_tokens, args.concurrency, args.singles = 8, 300, 4, 1
    report = Report("prefix", args)
    model = model_folder(args.model_path)
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        common = (f"--model-path={model}", f"--num-threads={args.threads}")
        deployments = {
            "radix on": stack.enter_context(Deployment(*common)),
            "radix off": stack.enter_context(Deployment(*common, "--disable-radix-cache")),
        }
        for name, deployment in deployments.items():
            results[name] = uvloop.run(measure(deployment, model, args))
            report.note(f"{name}: {results[name]['shared']['wall_s']:.1f} s for {args.requests} requests")
    show(report, results)
    report.finish(results)


async def measure(deployment: Deployment, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Single misses and hits, then all requests that share the prefix."""
    name = deployment.get("/v1/models")["data"][0]["id"]
    length = args.prefix_tokens + args.own_tokens

    async def send(prompts: list[load.Prompt], concurrency: int) -> load.Load:
        return await load.run(deployment.port, prompts, concurrency=concurrency, max_tokens=args.max_tokens, model=name)

    await send(load.make_prompts(model, [32], seed=1), 1)  # warm up
    first, second = [], []
    for prompt in load.make_prompts(model, [length] * args.singles, seed=2):
        first += (await send([prompt], 1)).streams
        second += (await send([prompt], 1)).streams
    (prefix,) = load.make_prompts(model, [args.prefix_tokens], seed=3)
    ends = load.make_prompts(model, [args.own_tokens] * args.requests, seed=4)
    shared = await send([prefix + end for end in ends], args.concurrency)
    return {
        "first_ttft_ms": load.spread([s.ttft_s * 1e3 for s in first]),
        "second_ttft_ms": load.spread([s.ttft_s * 1e3 for s in second]),
        "second_cached_tokens": [s.cached_tokens for s in second],
        "shared": {**shared.figures(), "cached_tokens": sum(s.cached_tokens for s in shared.streams)},
        "cached_tokens_total": deployment.scheduler()["cached_tokens_total"],
    }


def show(report: Report, results: dict[str, dict[str, Any]]) -> None:
    report.table(
        "one request alone",
        ["cache", "first TTFT p50 ms", "again TTFT p50 ms", "cached tokens"],
        [[n, r["first_ttft_ms"]["p50"], r["second_ttft_ms"]["p50"], r["second_cached_tokens"][0]]
         for n, r in results.items()],
    )  # fmt: skip
    report.table(
        "all requests that share the prefix",
        ["cache", "wall s", "tokens/s", "TTFT p50 ms", "TTFT p99 ms", "cached tokens", "errors"],
        [
            [n, r["shared"]["wall_s"], r["shared"]["tokens_per_s"], r["shared"]["ttft_ms"]["p50"],
             r["shared"]["ttft_ms"]["p99"], r["shared"]["cached_tokens"], r["shared"]["errors"]]
            for n, r in results.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()

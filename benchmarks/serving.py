"""The real model through HTTP, beside its peers on the same machine, one after the other at every level of load.

Peers: `transformers.generate` on static batches (same weights, fp32, same threads, same prompts and output lengths),
and llama.cpp's server where one is given. Every system sees the same prompts, no two with a common beginning, so no
prefix cache helps anybody.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import urllib.parse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from benchmarks import load
from benchmarks.llama_peer import LlamaServer
from benchmarks.report import Report
from benchmarks.stack import Deployment, model_folder
from benchmarks.transformers_peer import TransformersPeer
from tests.plain_model import plain_model

System = Callable[[list[load.Prompt], int, int], load.Load]
"""(prompts, concurrency, max_tokens) -> what came out."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64], help="clients, each level")
    parser.add_argument("--rounds", type=int, default=2, help="requests per client and level")
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=[32, 160], metavar=("LEAST", "MOST"))
    parser.add_argument("--max-tokens", type=int, default=64, help="output of each request, tokens")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each system")
    parser.add_argument("--model-path", default="SmolLM2-135M-Instruct")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    parser.add_argument("--llama-server-bin", metavar="FILE", help="llama-server to start, with --gguf")
    parser.add_argument("--gguf", nargs="+", default=[], metavar="FILE", help="weights for llama-server, each in turn")
    parser.add_argument("--llama-server-url", help="a llama-server that runs already")
    parser.add_argument("--quick", action="store_true", help="levels 1 and 4, 16 tokens")
    args = parser.parse_args()
    if args.quick:
        args.concurrency, args.max_tokens, args.rounds = [1, 4], 16, 1
    report = Report("serving", args)
    with ExitStack() as stack:
        systems = start(stack, args, report)
        results = measure(report, systems, args)
    show(report, results)
    report.finish({"systems": list(systems), "levels": results})


def start(stack: ExitStack, args: argparse.Namespace, report: Report) -> dict[str, System]:
    """Start every system; all stay up, idle while another is measured."""
    model = model_folder(args.model_path)
    ours = stack.enter_context(Deployment(f"--model-path={model}", f"--num-threads={args.threads}"))
    name = ours.get("/v1/models")["data"][0]["id"]
    systems: dict[str, System] = {"rhizome": over_http(ours.port, name)}
    if not args.no_transformers:
        peer = stack.enter_context(TransformersPeer(_plain(stack, model), args.threads))
        systems["transformers"] = lambda prompts, c, n: peer.run(prompts, concurrency=c, max_tokens=n)
    longest = args.prompt_tokens[1] + args.max_tokens + 8
    for gguf in args.gguf if args.llama_server_bin else []:
        server = LlamaServer(
            args.llama_server_bin, gguf, threads=args.threads, slots=max(args.concurrency), context_length=longest
        )
        systems[f"llama.cpp {Path(gguf).name}"] = over_http(stack.enter_context(server).port, "any")
    if args.llama_server_url:
        systems["llama.cpp"] = over_http(urllib.parse.urlsplit(args.llama_server_url).port or 80, "any")
    if not args.llama_server_bin and not args.llama_server_url:
        report.note("llama.cpp is left out: no --llama-server-bin and no --llama-server-url")
    return systems


def _plain(stack: ExitStack, model: Path) -> Path:
    """The model in a form that transformers reads."""
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="rhizome-plain-"))
    return plain_model(model, Path(scratch) / model.name)


def over_http(port: int, model: str) -> System:
    def run(prompts: list[load.Prompt], concurrency: int, max_tokens: int) -> load.Load:
        return uvloop.run(load.run(port, prompts, concurrency=concurrency, max_tokens=max_tokens, model=model))

    return run


def measure(report: Report, systems: dict[str, System], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every system at every level, with the same prompts."""
    model = model_folder(args.model_path)
    lengths = Random(0)
    for system in systems.values():  # warm up
        system(load.make_prompts(model, [args.prompt_tokens[0]] * 2, seed=1), 2, 4)
    results = []
    for concurrency in args.concurrency:
        count = concurrency * args.rounds if concurrency > 1 else max(3, args.rounds)
        sizes = [lengths.randint(*args.prompt_tokens) for _ in range(count)]
        prompts = load.make_prompts(model, sizes, seed=concurrency * 1000)
        for name, system in systems.items():
            done = system(prompts, concurrency, args.max_tokens)
            results.append({"system": name, "prompt_tokens": sum(sizes), **done.figures()})
            report.note(f"{concurrency} clients, {name}: {done.tokens_per_s:.1f} tokens/s")
            for error in done.errors[:1]:
                report.note(f"  {len(done.errors)} requests failed, the first with: {error}")
    return results


def show(report: Report, results: list[dict[str, Any]]) -> None:
    ours = {r["concurrency"]: r["tokens_per_s"] for r in results if r["system"] == "rhizome"}
    for r in results:
        r["rhizome_is_times"] = round(ours[r["concurrency"]] / r["tokens_per_s"], 2) if r["tokens_per_s"] else None
    report.table(
        "output tokens through HTTP (transformers: direct calls)",
        ["clients", "system", "tokens/s", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "ITL p99 ms", "errors",
         "rhizome is x"],
        [
            [r["concurrency"], r["system"], r["tokens_per_s"], r["ttft_ms"].get("p50"), r["ttft_ms"].get("p99"),
             r["tpot_ms"].get("p50"), r["itl_ms"].get("p99"), r["errors"], r["rhizome_is_times"]]
            for r in results
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Programs of the language: the workloads of SGLang's paper, with the radix cache and hints, without, and naively.

Two deployments are up, one with the cache and one without, and measured one after the other, the cache emptied before
each run. "naive" is the same program, one at a time, each generation a call through the OpenAI client that waits for
the one before.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from tokenizers import Tokenizer

import rhizome as rz
from benchmarks.program_sections.hit_rate import CountingEndpoint, rates
from benchmarks.program_sections.workloads import WORKLOADS, Scale, Workload
from benchmarks.report import Report
from benchmarks.stack import Deployment, model_folder

MODES = ("radix + hints", "radix", "no radix", "naive")


class OneAtATime(rz.OpenAI):
    """The OpenAI backend of somebody who waits for every call."""

    _busy = asyncio.Lock()

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        async with self._busy:
            return await super().generate(*args, **kwargs)

    async def select(self, *args: Any, **kwargs: Any) -> Any:
        async with self._busy:
            return await super().select(*args, **kwargs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.programs", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(w.__name__ for w in WORKLOADS)}; all by default")
    parser.add_argument("--programs", type=int, default=16, help="programs of each workload")
    parser.add_argument("--naive-programs", type=int, default=4, help="of them run naively")
    parser.add_argument("--concurrency", type=int, default=16, help="programs at a time")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the lengths of texts and generations")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model-path", default="SmolLM2-135M-Instruct")
    parser.add_argument("--server-flag", action="append", default=[], metavar="FLAG",
                        help="for both deployments: --server-flag=--device=cuda")  # fmt: skip
    parser.add_argument("--states", type=int, default=2000, help="async program states at a time; 0 leaves it out")
    parser.add_argument("--quick", action="store_true", help="2 programs of a quarter of the length, 200 states")
    args = parser.parse_args()
    if args.quick:
        args.programs, args.naive_programs, args.concurrency, args.scale = 2, 1, 2, 0.25
        args.states = min(args.states, 200)
    chosen = [w for w in WORKLOADS if not args.workloads or w.__name__ in args.workloads]
    if unknown := set(args.workloads) - {w.__name__ for w in WORKLOADS}:
        parser.error(f"no workload {unknown.pop()!r}")
    report = Report("programs", args)
    model = model_folder(args.model_path)
    scale = Scale(args.programs, args.scale)
    figures: dict[str, Any] = {}
    if args.states:
        concurrent = states(args.states)
        report.note(f"{args.states} async states: {concurrent}")
    with ExitStack() as stack:
        flags = (f"--model-path={model}", f"--num-threads={args.threads}", *args.server_flag)
        on = stack.enter_context(Deployment(*flags))
        off = stack.enter_context(Deployment(*flags, "--disable-radix-cache"))
        for make in chosen:
            workload = make(scale)
            figures[workload.name] = measure(workload, on, off, model, args)
            report.note(f"{workload.name}: {figures[workload.name]}")
    show(report, figures)
    report.finish({"workloads": figures, "async_states": concurrent if args.states else None})


def measure(workload: Workload, on: Deployment, off: Deployment, model: Path, args: argparse.Namespace) -> Any:
    """One workload in every mode; a server that cannot do it is told as such."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    page_size = on.scheduler()["engines"][0]["page_size"]
    out: dict[str, Any] = {"prefix_heavy": workload.prefix_heavy}
    try:
        warm_up(workload, on, off)
        for mode, deployment, hints in (("radix + hints", on, True), ("radix", on, False), ("no radix", off, False)):
            on.flush_cache()
            backend = CountingEndpoint(deployment.url, prefix_hints=hints)
            wall_s = run(workload, backend, len(workload.arguments), args.concurrency)
            out[mode] = {"programs_per_s": len(workload.arguments) / wall_s,
                         **rates(backend.requests(tokenizer), page_size)}  # fmt: skip
        on.flush_cache()
        naive = OneAtATime(
            model.name, False, base_url=on.url + "/v1", api_key="none", dialect="rhizome", chat_template="chatml"
        )
        count = min(args.naive_programs, len(workload.arguments))
        out["naive"] = {"programs_per_s": count / run(workload, naive, count, 1)}
    except rz.ProgramError as fault:
        return {"failed": str(fault)}
    return out


def states(count: int) -> dict[str, float]:
    """Programs on one event loop, all waiting for a scripted backend at the same time: seconds and memory."""

    @rz.function
    async def program(s, i):
        s += f"Program {i} says"
        branches = s.fork(2)
        branches += rz.gen("word")
        branches.join()
        s += rz.gen("end")
        await s["end"]

    backend = rz.FakeBackend(lambda *_: " something", latency_s=0.2)
    process = psutil.Process()

    async def all_at_once() -> tuple[float, int, int]:
        before_bytes, began_s = process.memory_info().rss, time.perf_counter()
        done = await program.arun_batch([{"i": i} for i in range(count)], backend=backend)
        wall_s = time.perf_counter() - began_s
        left = len(asyncio.all_tasks()) - 1
        return wall_s, (process.memory_info().rss - before_bytes) // len(done), left

    wall_s, bytes_each, left = asyncio.run(all_at_once())
    return {
        "wall_s": wall_s, "states_per_s": 3 * count / wall_s, "most_calls_at_a_time": backend.max_running,
        "bytes_per_program": bytes_each, "tasks_left": left,
    }  # fmt: skip


def warm_up(workload: Workload, *deployments: Deployment) -> None:
    """One program each, so that nothing is compiled or fetched in the measurement."""
    for deployment in deployments:
        run(workload, rz.RuntimeEndpoint(deployment.url), 1, 1)


def run(workload: Workload, backend: rz.Backend, count: int, concurrency: int) -> float:
    """Seconds for the first `count` programs.

    Raises:
        ProgramError: one failed.
    """
    began_s = time.perf_counter()
    states: Sequence[Any] = list(
        workload.program.run_batch(workload.arguments[:count], backend=backend, num_threads=concurrency, temperature=0)
    )
    wall_s = time.perf_counter() - began_s
    for state in states:
        if fault := state.error():
            raise fault
    return wall_s


def show(report: Report, figures: dict[str, Any]) -> None:
    done = {name: f for name, f in figures.items() if "failed" not in f}
    report.table(
        "programs per second",
        ["workload", *MODES, "hints / no radix", "hints / naive"],
        [
            [name, *(f[mode]["programs_per_s"] for mode in MODES),
             f["radix + hints"]["programs_per_s"] / f["no radix"]["programs_per_s"],
             f["radix + hints"]["programs_per_s"] / f["naive"]["programs_per_s"]]
            for name, f in done.items()
        ],
    )  # fmt: skip
    report.table(
        "share of prompt tokens from the cache, in %",
        ["workload", "radix + hints", "radix", "best possible", "best in whole pages"],
        [
            [name, f["radix + hints"]["hit_rate"] * 100, f["radix"]["hit_rate"] * 100, f["radix"]["best"] * 100,
             f["radix"]["best_paged"] * 100]
            for name, f in done.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()

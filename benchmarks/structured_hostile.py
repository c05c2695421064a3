"""What the grammars of a hostile client cost everybody else: time to first token of plain requests meanwhile.

Four situations take turns on one deployment: nobody else; 50 plain requests at once; 50 requests at once whose
grammars are chosen to be slow to compile; the same, slow to follow. No two are the same, so that no cache helps. Plain
requests come one after the other until the last of the 50 has its answer. Gateway, tokenizer, scheduler and grammars
are real; a step of the worker takes a fixed time and no CPU, so what shows is the services' doing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks import load
from benchmarks.report import Report
from benchmarks.stack import ScriptedDeployment, model_folder
from benchmarks.streams import Stream, stream

SITUATIONS = ("alone", "plain crowd", "slow to compile", "slow to follow")
PATH = "/v1/completions"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structured_hostile", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that the situations take turns")
    parser.add_argument("--crowd", type=int, default=50, help="requests at once")
    parser.add_argument("--crowd-tokens", type=int, default=64, help="most tokens of each of them")
    parser.add_argument("--probes", type=int, default=60, help="plain requests where nobody else is served")
    parser.add_argument("--step-ms", type=float, default=10.0, help="milliseconds of a scripted step")
    parser.add_argument("--model-path", default="SmolLM2-135M-Instruct", help="model whose tokenizer is used")
    parser.add_argument("--quick", action="store_true", help="one round, few requests")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.crowd, args.probes = 1, 12, 20
    report = Report("structured_hostile", args)
    results = uvloop.run(measure(args, report))
    report.table(
        f"plain requests of 4 tokens, steps of {args.step_ms:g} ms, {args.rounds} rounds",
        ["meanwhile", "requests", "TTFT p50 ms", "p99 ms", "most ms", "errors", "last answer s", "crowd's answers"],
        [
            [r["meanwhile"], r["requests"], r["ttft_ms"]["p50"], r["ttft_ms"]["p99"], r["most_ms"], r["errors"],
             r["last_answer_s"], ", ".join(f"{n} x {answer}" for answer, n in r["answers"].items()) or "-"]
            for r in results
        ],
    )  # fmt: skip
    report.finish({"situations": results})


async def measure(args: argparse.Namespace, report: Report) -> list[dict[str, Any]]:
    """The situations in turn, on one deployment."""
    model = model_folder(args.model_path)
    worker = [f"--step-ms={args.step_ms}", f"--max-rows={args.crowd + 8}", "--mask-slots=256"]
    plain = bodies(model, args)
    grammars = {
        "plain crowd": itertools.repeat({}), "slow to compile": slow_to_compile(), "slow to follow": slow_to_follow(),
    }  # fmt: skip
    seen: dict[str, list[Stream]] = {name: [] for name in SITUATIONS}
    crowds: dict[str, list[Stream]] = {name: [] for name in SITUATIONS}
    took: dict[str, list[float]] = {name: [] for name in SITUATIONS}
    with ScriptedDeployment(model, worker=worker, scheduler=[f"--tokenizer-path={model}"]) as server:
        for _ in range(5):
            await stream(server.port, PATH, next(plain))
        await stream(server.port, PATH, constrained(next(plain), {"regex": "warm up"}, args.crowd_tokens))
        for turn in range(args.rounds):
            for name in SITUATIONS:
                hostile = itertools.islice(grammars.get(name, ()), args.crowd)
                crowd = [constrained(next(plain), grammar, args.crowd_tokens) for grammar in hostile]
                everyone = asyncio.ensure_future(all_at_once(server.port, crowd))
                while len(seen[name]) < args.probes * (turn + 1) if name == "alone" else not everyone.done():
                    seen[name].append(await stream(server.port, PATH, next(plain)))
                streams, until_s = await everyone
                crowds[name] += streams
                took[name].append(until_s)
            report.note(f"round {turn + 1}: {', '.join(f'{name} {len(seen[name])}' for name in SITUATIONS)} requests")
    return [figures(name, seen[name], crowds[name], max(took[name])) for name in SITUATIONS]


async def all_at_once(port: int, crowd: list[bytes]) -> tuple[list[Stream], float]:
    """What came of each, and the seconds until the last had its answer."""
    began = time.perf_counter()
    streams = await asyncio.gather(*(stream(port, PATH, body) for body in crowd))
    return streams, time.perf_counter() - began


def figures(name: str, seen: list[Stream], crowd: list[Stream], last_answer_s: float) -> dict[str, Any]:
    """Of one situation over all rounds."""
    good = [s.ttft_s * 1e3 for s in seen if not s.error]
    return {
        "meanwhile": name,
        "requests": len(seen),
        "errors": len(seen) - len(good),
        "ttft_ms": load.spread(good),
        "most_ms": round(max(good), 3),
        "last_answer_s": round(last_answer_s, 3) if crowd else None,
        "answers": dict(Counter(answer(s) for s in crowd).most_common()),
    }


def answer(done: Stream) -> str:
    """How a request of the crowd ended."""
    if not done.error:
        return "served"
    return done.error.split()[1] if done.error.startswith("HTTP/") else "error in the stream"


def bodies(model: Path, args: argparse.Namespace) -> Iterator[bytes]:
    """Plain requests without end, no two with a common beginning."""
    for seed in itertools.count():
        for prompt in load.make_prompts(model, [32] * 50, seed):
            yield load.completion_body(prompt, 4, Path(args.model_path).name)


def constrained(body: bytes, grammar: dict[str, Any], max_tokens: int) -> bytes:
    """The same request under a grammar; it may end early."""
    return orjson.dumps(orjson.loads(body) | {"max_tokens": max_tokens, "ignore_eos": False} | grammar)


def slow_to_compile() -> Iterator[dict[str, Any]]:
    """Grammars without end, each a little different from all before; a few take longer than is allowed."""
    for i in itertools.count():
        if i % 3 == 0:
            rules = [f'r{k} ::= "x{k}" r{k + 1} | r{k + 1} "y"' for k in range(2000)]
            yield {"ebnf": "\n".join(["root ::= r0", *rules, f'r2000 ::= "{i}"'])}
        yield {"regex": "|".join(f"{i}word{k}[a-z]+{k}" for k in range(2000))}
        yield {"choice": [f"{i} of many, {k}" for k in range(10_000)]}
        yield {"json_schema": {"enum": [f"value {i}.{k}" * 3 for k in range(5000)]}}
        yield {"json_schema": {"type": "object", "properties": {f"p{i}.{k}": {"type": "string"} for k in range(1000)}}}
        yield {"json_schema": nested(4, i)}
        yield {"regex": rf"(.{{0,{100 + i}}}){{0,100}}"}


def slow_to_follow() -> Iterator[dict[str, Any]]:
    """The same, but what is slow is to say which tokens may come next."""
    for i in itertools.count():
        yield {"regex": rf"((a*)*)*b{i}"}
        yield {"regex": rf"(\w{{1,{50 + i % 50}}}\s){{1,{50 + i}}}"}
        yield {"regex": rf".*a.{{{20 + i}}}"}
        yield {"regex": rf"((x+x+)+y){{1,{200 + i}}}"}
        yield {"regex": rf"([a-z]{{0,{200 + i}}}[0-9]){{0,200}}"}
        yield {"ebnf": f'root ::= root root root | "a" | "{i}"'}
        yield {"json_schema": {"type": "string", "pattern": rf"^(\w+\s?){{1,{100 + i}}}$", "maxLength": 4000 - i % 100}}


def nested(depth: int, salt: int) -> dict[str, Any]:
    """A tree of alternatives, six at every level."""
    if depth == 0:
        return {"type": "string", "maxLength": 100 + salt}
    inner = nested(depth - 1, salt)
    return {"anyOf": [{"type": "object", "properties": {f"k{k}": inner}, "required": [f"k{k}"]} for k in range(6)]}


if __name__ == "__main__":
    main()

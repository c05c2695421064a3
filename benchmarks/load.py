"""Closed-loop load: a fixed number of clients, each sending its next request when its last one ended."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer

from benchmarks.streams import Stream, stream

Prompt = list[int]
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face others level office door health person art war history party result change "
    "morning reason research"
)


@dataclass(frozen=True, slots=True)
class Load:
    """What came out of one level of load."""

    concurrency: int
    wall_s: float
    streams: list[Stream]

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.streams if not s.error)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def errors(self) -> list[str]:
        return [s.error for s in self.streams if s.error]

    def figures(self) -> dict[str, Any]:
        """For the JSON document. Times in milliseconds."""
        good = [s for s in self.streams if not s.error]
        return {
            "concurrency": self.concurrency,
            "requests": len(self.streams),
            "errors": len(self.errors),
            "tokens": self.tokens,
            "events_per_token": round(sum(s.events for s in good) / max(1, self.tokens), 3),
            "events_per_read": round(sum(s.events for s in good) / max(1, sum(len(s.arrivals_s) for s in good)), 2),
            "wall_s": round(self.wall_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "ttft_ms": spread([s.ttft_s * 1e3 for s in good]),
            "tpot_ms": spread([s.tpot_s * 1e3 for s in good if s.tokens > 1]),
            "itl_ms": spread([gap * 1e3 for s in good for gap in np.diff(s.arrivals_s)]),
            "e2e_ms": spread([s.e2e_s * 1e3 for s in good]),
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, median and 99th percentile; empty when there are no values."""
    if not len(values):
        return {}
    p50, p99 = np.percentile(values, [50, 99])
    return {"mean": round(float(np.mean(values)), 3), "p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def make_prompts(model: Path, lengths: Sequence[int], seed: int) -> list[Prompt]:
    """Token ids of meaningless but ordinary English, one prompt per length, no two with a common beginning."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    chooser, vocabulary = random.Random(seed), _WORDS.split()
    out = []
    for length in lengths:
        words = " ".join(chooser.choices(vocabulary, k=length + 8))
        out.append(tokenizer.encode(f"{chooser.randrange(10**9)} {words}", add_special_tokens=False).ids[:length])
    return out


async def run(port: int, prompts: Sequence[Prompt], *, concurrency: int, max_tokens: int, model: str) -> Load:
    """Send every prompt once to /v1/completions; greedy, exactly `max_tokens` tokens each."""
    bodies = iter([completion_body(p, max_tokens, model) for p in prompts])
    out: list[Stream] = []

    async def client() -> None:
        for body in bodies:  # one iterator for all clients
            done = await stream(port, "/v1/completions", body)
            out.append(done)

    begin_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    done = Load(concurrency, time.perf_counter() - begin_s, out)
    if len(done.errors) == len(prompts):
        raise SystemExit(f"every request failed, the first with: {done.errors[0]}")
    return done


def completion_body(prompt: Prompt, max_tokens: int, model: str) -> bytes:
    """A greedy streaming completion of exactly `max_tokens` tokens."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return orjson.dumps(body)

"""Many clients at once, each request with an image of its own: images a second, and what encoding costs beside it.

The same requests are sent three times: with new images; with images that the encoder knows, in another cache
namespace, so that their prompts are computed again; and with everything cached. Encoding that is hidden behind other
requests' work makes the first as fast as the second.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvloop

from benchmarks.load import Load
from benchmarks.report import Report
from benchmarks.stack import Deployment
from benchmarks.streams import Stream, stream
from benchmarks.vision_sections.pictures import chat_body, data_url, picture


def measure(
    report: Report, deployment: Deployment, side: int, requests: int, clients: int, max_tokens: int
) -> list[dict[str, Any]]:
    """One row per state of the caches."""
    urls = [data_url(picture(side, 50_000 + i)) for i in range(requests)]
    rows = []
    for state, salt in (("new images", ""), ("known to the encoder", "again"), ("all cached", "")):
        bodies = [chat_body([url], max_tokens=max_tokens, salt=salt) for url in urls]
        load = uvloop.run(run(deployment, bodies, clients))
        assert not load.errors, load.errors[:3]
        rows.append({"state": state, "side": side, "images_per_s": round(requests / load.wall_s, 2), **load.figures()})
        report.note(f"load {rows[-1]}")
    report.table(
        f"{requests} requests with an image of {side} x {side}, {clients} clients, {max_tokens} tokens each",
        ("images", "images/s", "tokens/s", "TTFT p50 ms", "TTFT p99 ms"),
        [(r["state"], r["images_per_s"], r["tokens_per_s"], r["ttft_ms"]["p50"], r["ttft_ms"]["p99"]) for r in rows],
    )
    return rows


async def run(deployment: Deployment, bodies: list[bytes], clients: int) -> Load:
    waiting, done = list(reversed(bodies)), []

    async def client() -> None:
        while waiting:
            done.append(await stream(deployment.port, "/v1/chat/completions", waiting.pop()))

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    streams: list[Stream] = done
    return Load(clients, time.perf_counter() - began_s, streams)

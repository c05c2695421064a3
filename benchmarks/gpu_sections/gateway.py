"""Throughput of the whole system through the gateway: HTTP in and out, token ids as prompts, all requests at once.

Around the random weights stands a tokenizer whose words are its ids, so that the tokenizer service does its work.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import uvloop
from tokenizers import Tokenizer, decoders, models

from benchmarks.gpu_sections.offline import CONTEXT, MEMORY_FRACTION, WARM_UP_OUTPUT, WARM_UP_REQUESTS
from benchmarks.gpu_sections.workloads import WORKLOADS, Work
from benchmarks.report import Report
from benchmarks.stack import Deployment
from tests.gpu.shapes import SHAPES, write_shape

Row = dict[str, Any]


def measure(report: Report, folder: Path, shape: str, names: list[str], flags: list[str]) -> list[Row]:
    """One row per workload.

    Args:
        flags: more of them for the deployment.
    """
    vocab = SHAPES[shape]["vocab_size"]
    model = write_shape(shape, folder / f"{shape}-with-tokenizer")
    words = Tokenizer(models.WordLevel({f" {i}": i for i in range(vocab)}, unk_token=" 0"))
    words.decoder = decoders.Fuse()
    words.save(str(model / "tokenizer.json"))
    started_s = time.perf_counter()
    with Deployment(
        f"--model-path={model}", "--load-format=dummy", "--device=cuda", "--dtype=bfloat16",
        f"--context-length={CONTEXT}", f"--mem-fraction-static={MEMORY_FRACTION}", *flags,
    ) as deployment:  # fmt: skip
        report.note(f"{shape} gateway: ready after {time.perf_counter() - started_s:.1f} s")
        rows = uvloop.run(_drive(deployment.url, vocab, names))
    for row in rows:
        report.note(f"{shape} gateway {row['workload']}: {row}")
    return [{"shape": shape, **row} for row in rows]


async def _drive(url: str, vocab: int, names: list[str]) -> list[Row]:
    rows = []
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        for name in names:
            warm_up = WORKLOADS[name](np.random.default_rng(1), vocab)[:WARM_UP_REQUESTS]
            await _all(session, url, [Work(work.prompt, min(work.output, WARM_UP_OUTPUT)) for work in warm_up])
            work = WORKLOADS[name](np.random.default_rng(0), vocab)
            started_s = time.perf_counter()
            await _all(session, url, work)
            wall_s = time.perf_counter() - started_s
            tokens = sum(item.output for item in work)
            rows.append({"workload": name, "output_tokens_per_s": round(tokens / wall_s), "wall_s": round(wall_s, 2)})
    return rows


async def _all(session: aiohttp.ClientSession, url: str, work: list[Work]) -> None:
    async def one(item: Work) -> None:
        sampling = {"temperature": 0, "max_new_tokens": item.output, "ignore_eos": True}
        body = orjson.dumps({"input_ids": item.prompt.tolist(), "sampling_params": sampling})
        async with session.post(f"{url}/generate", data=body, headers={"Content-Type": "application/json"}) as reply:
            assert reply.status == 200, await reply.text()
            answer = await reply.json()
        assert len(answer["output_ids"]) == item.output

    await asyncio.gather(*(one(item) for item in work))

"""Mixed load with requests that come, stream, and are given up at random; afterwards nothing may be missing.

Prompts of all lengths, some with common beginnings, greedy and sampled, with and without log probabilities, more
requests than the engine has rows. A third are aborted on their way. At the end every page is free or evictable, no row
is taken, and the device holds as much memory as after the first minute's tenth.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.gpu_sections.system import service
from benchmarks.gpu_sections.token_client import TokenClient
from benchmarks.gpu_sections.workloads import Work
from benchmarks.report import Report
from rhizome.nats_server import EmbeddedNats
from shared.bus import NatsBus
from shared.sampling import NEUTRAL
from tests.gpu.shapes import SHAPES, write_shape

AT_ONCE, CONTEXT = 384, 2048
SETTLED = 0.1
"""Share of the time after which memory is taken as what it should be at the end."""
Row = dict[str, Any]


def measure(report: Report, folder: Path, shape: str, seconds: float, flags: list[str]) -> Row:
    """
    Args:
        flags: more of them for the worker.
    """
    model = write_shape(shape, folder / shape)
    worker = [
        f"--model-path={model}", "--load-format=dummy", "--device=cuda", "--dtype=bfloat16",
        f"--context-length={CONTEXT}", "--max-running-requests=256", "--max-total-tokens=120000", *flags,
    ]  # fmt: skip
    with ExitStack() as stack:
        nats = stack.enter_context(EmbeddedNats())
        stack.enter_context(service(folder, "worker", nats.url, worker))
        stack.enter_context(service(folder, "scheduler", nats.url, []))
        row = uvloop.run(_drive(nats.url, SHAPES[shape]["vocab_size"], seconds))
    report.note(f"{shape} soak: {row}")
    assert row["leaked_pages"] == row["rows_left"] == row["failed"] == 0, row
    return {"shape": shape, **row}


async def _drive(url: str, vocab: int, seconds: float) -> Row:
    bus = await NatsBus.connect(url, "bench")
    client = TokenClient(bus)
    await client.start()
    await client.wait_until_served()
    load = _Load(client, vocab)
    started_s, settled = time.monotonic(), {}
    while (passed_s := time.monotonic() - started_s) < seconds:
        await load.turn()
        if not settled and passed_s > SETTLED * seconds:
            settled = await _memory(client)
    await load.finish()
    info = (await client.info()).engines[0]
    row = {
        "seconds": round(time.monotonic() - started_s, 1),
        "requests": load.submitted,
        "aborted": load.aborted,
        "failed": len(client.errors),
        "steps": info.steps,
        "rows_left": info.running_reqs,
        "leaked_pages": info.total_pages - info.free_pages - info.evictable_pages,
        "device_bytes_settled": settled.get("device"),
        "device_bytes_end": (await _memory(client))["device"],
    }
    await client.stop()
    return row


async def _memory(client: TokenClient) -> dict[str, int]:
    return {"device": await client.device_bytes()}


class _Load:
    """Keeps more requests under way than there are rows."""

    def __init__(self, client: TokenClient, vocab: int) -> None:
        self._client, self._vocab, self._rng = client, vocab, np.random.default_rng(0)
        self._prefixes = [self._tokens(int(n)) for n in self._rng.integers(30, 700, 12)]
        self.submitted = self.aborted = 0

    def _tokens(self, count: int) -> np.ndarray:
        return self._rng.integers(0, self._vocab, count).astype(np.int32)

    async def turn(self) -> None:
        """Top up, give some up, let time pass."""
        missing = AT_ONCE - len(self._client.running)
        if missing > 0:
            await asyncio.gather(*(self._submit() for _ in range(missing)))
        victims = [handle for handle in self._client.running if self._rng.random() < 0.01]
        if victims:
            self.aborted += len(victims)
            await self._client.abort(victims)
        await asyncio.sleep(0.05)

    async def _submit(self) -> None:
        rng = self._rng
        prompt = self._tokens(int(rng.integers(1, 300)))
        if rng.random() < 0.5:
            prompt = np.concatenate((self._prefixes[int(rng.integers(len(self._prefixes)))], prompt))
        sampling = dataclasses.replace(
            NEUTRAL, temperature=float(rng.choice([0.0, 0.8])), top_p=float(rng.choice([1.0, 0.9])),
            frequency_penalty=float(rng.choice([0.0, 0.5])), ignore_eos=True,
        )  # fmt: skip
        self.submitted += 1
        work = Work(prompt, int(rng.integers(1, 300)))
        await self._client.submit(work, sampling=sampling, return_logprob=bool(rng.random() < 0.2))

    async def finish(self) -> None:
        """Give up what is left and wait for its end."""
        await self._client.abort(list(self._client.running))
        await self._client.wait_until_idle()
        while True:
            engine = (await self._client.info()).engines[0]
            if not engine.in_flight_steps and not engine.running_reqs:
                return
            await asyncio.sleep(0.05)

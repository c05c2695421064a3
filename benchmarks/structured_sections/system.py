"""The tasks through a whole deployment: forced runs appended, every token sampled, and no grammar at all."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.structured_sections.tasks import Task
from shared import messages as m
from shared import wire
from shared.bus import NatsBus
from shared.subjects import Subjects

VARIANTS = ("jump on", "jump off", "no grammar")
Row = dict[str, Any]


@dataclass
class StepWatch:
    """What the engine says of its steps, from the bus."""

    timings: list[m.StepTiming] = field(default_factory=list)

    async def start(self, url: str) -> None:
        bus = await NatsBus.connect(url, "bench")

        async def on_result(data: bytes, _: str) -> None:
            self.timings.append(wire.decode(m.StepResult, data).timing)

        await bus.subscribe(Subjects().scheduler_result("*.*"), on_result)
        await bus.flush()

    def figures(self) -> Row:
        """Per step, in milliseconds, and the share of the device's time in which it waited for masks."""
        steps = self.timings
        busy = sum(t.prepare_ms + t.forward_ms + t.sample_ms for t in steps)
        idle, masks = sum(t.idle_ms for t in steps[1:]), sum(t.mask_wait_ms for t in steps)
        return {
            "steps": len(steps),
            "step_ms": round((busy + idle + masks) / max(1, len(steps)), 3),
            "mask_wait_ms": round(masks / max(1, len(steps)), 3),
            "idle_share": round(idle / max(busy + idle + masks, 1e-9), 4),
            "mask_wait_share": round(masks / max(busy + idle + masks, 1e-9), 4),
        }


@dataclass(frozen=True)
class Client:
    """Closed-loop load on `/generate`."""

    url: str
    watch: StepWatch

    async def run(self, task: Task, variant: str, concurrency: int, count: int, tokens: int) -> Row:
        """One row. `tokens` is the length of unconstrained outputs."""
        queue, outputs, latencies = list(enumerate(task.prompts(count))), [], []

        async def client(session: aiohttp.ClientSession) -> None:
            while queue:
                number, prompt = queue.pop(0)
                started_s = time.perf_counter()
                outputs.append(await self._post(session, prompt, _sampling(task, variant, tokens, number)))
                latencies.append(time.perf_counter() - started_s)

        self.watch.timings.clear()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            before, started_s = await self._forced(session), time.perf_counter()
            await asyncio.gather(*(client(session) for _ in range(concurrency)))
            wall_s = time.perf_counter() - started_s
            forced = await self._forced(session) - before
        made = [output["meta_info"]["completion_tokens"] for output in outputs]
        return {
            "variant": variant,
            "concurrency": concurrency,
            "tokens_per_s": round(sum(made) / wall_s, 1),
            "latency_s": round(statistics.median(latencies), 3),
            "tokens": round(statistics.mean(made), 1),
            "ms_per_token": round(1e3 * wall_s * concurrency / sum(made), 3),
            "forced_share": round(forced / sum(made), 3),
            "ended": _ended(task, variant, outputs),
            **self.watch.figures(),
        }

    async def _post(self, session: aiohttp.ClientSession, prompt: str, sampling: dict[str, Any]) -> Any:
        async with session.post(f"{self.url}/generate", json={"text": prompt, "sampling_params": sampling}) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json()

    async def _forced(self, session: aiohttp.ClientSession) -> float:
        async with session.get(f"{self.url}/metrics") as reply:
            found = re.findall(r"^rhizome_forced_tokens_total\S* (\S+)", await reply.text(), re.MULTILINE)
        return sum(map(float, found))


def _sampling(task: Task, variant: str, tokens: int, number: int) -> dict[str, Any]:
    sampling: dict[str, Any] = {"temperature": 0.7, "seed": number}
    if variant == "no grammar":
        return {**sampling, "max_new_tokens": tokens, "ignore_eos": True}
    return {
        **sampling, **task.constraint, "max_new_tokens": task.max_new_tokens, "jump_forward": variant == "jump on"
    }  # fmt: skip


def _ended(task: Task, variant: str, outputs: list[Any]) -> str:
    """How many outputs ended by themselves, and how many of those do not fit the grammar, if there are any."""
    ended = [o["text"] for o in outputs if o["meta_info"]["finish_reason"]["type"] == "stop"]
    if variant == "no grammar":
        return "-"
    wrong = sum(not task.fits(text) for text in ended)
    return f"{len(ended)}/{len(outputs)}" + (f", {wrong} WRONG" if wrong else "")


async def measure(
    url: str, nats_url: str, tasks: dict[str, Task], concurrencies: list[int], per_client: int, variants: list[str]
) -> list[Row]:
    """Every task with every variant and number of clients; variants take turns."""
    watch = StepWatch()
    await watch.start(nats_url)
    client, rows = Client(url, watch), []
    for name, task in tasks.items():
        warm = await client.run(task, "jump on", 1, 2, 16)
        length = max(8, round(warm["tokens"]))
        for concurrency in concurrencies:
            for variant in variants:
                count = max(concurrency * per_client, 2)
                rows.append({"task": name, **await client.run(task, variant, concurrency, count, length)})
    return rows

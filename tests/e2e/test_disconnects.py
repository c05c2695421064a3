"""Many streaming clients, a third of which leave without a word."""

from __future__ import annotations

import asyncio
import json
import random
import time

import aiohttp

from tests.e2e.stack import Stack

CLIENTS = 200
TOKENS = 24


async def _stream(session: aiohttp.ClientSession, url: str, prompt: str, leave_after: int | None) -> str | None:
    """Text of one stream; None if this client left in the middle."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    text, events, finished = "", 0, False
    async with session.post(url + "/v1/completions", json=body) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                assert finished, "[DONE] before the finish reason"
                return text
            event = json.loads(line[6:])
            assert "error" not in event, event
            text += event["choices"][0]["text"]
            finished = finished or event["choices"][0]["finish_reason"] == "length"
            events += 1
            if leave_after is not None and events >= leave_after:
                return None
    raise AssertionError("the stream ended without [DONE]")


async def test_streams_of_those_who_stay_are_whole_and_nothing_leaks(stack: Stack) -> None:
    rng = random.Random(5)
    prompts = [f"Count from {i}: {i}, {i + 1}, {i + 2}," for i in range(10)]
    alone: dict[str, str] = {}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        for prompt in prompts:
            text = await _stream(session, stack.url, prompt, None)
            assert text is not None
            alone[prompt] = text
        leavers = set(rng.sample(range(CLIENTS), CLIENTS // 3))
        results = await asyncio.gather(
            *(
                _stream(session, stack.url, prompts[i % 10], rng.randint(1, TOKENS - 4) if i in leavers else None)
                for i in range(CLIENTS)
            )
        )
    for i, text in enumerate(results):
        if i not in leavers:
            assert text == alone[prompts[i % 10]]
    await asyncio.to_thread(_wait_idle, stack)
    engine = stack.engine()
    assert engine["private_pages"] == engine["protected_pages"] == 0
    assert engine["free_pages"] + engine["evictable_pages"] == engine["total_pages"]
    stack.post("/flush_cache", {})
    assert stack.engine()["free_pages"] == engine["total_pages"]


def _wait_idle(stack: Stack) -> None:
    deadline = time.monotonic() + 30
    while stack.engine()["running_reqs"]:
        assert time.monotonic() < deadline, "rows are still in use"
        time.sleep(0.1)

"""The language's connection to NATS, over a client that a test scripts."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

import rhizome as rz
from rhizome.lang.backends import nats as module


class FakeClient:
    """Answers each request with `answer`; remembers subjects."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.subjects: list[str] = []
        self._answer = answer

    async def subscribe(self, subject: str, cb: Any) -> None: ...

    async def flush(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, subject: str, data: bytes) -> None:
        self.subjects.append(subject)

    async def request(self, subject: str, data: bytes, timeout: float) -> Any:
        self.subjects.append(subject)
        return SimpleNamespace(data=orjson.dumps(self._answer))


class OneLink:
    def __init__(self, link: module._Link) -> None:
        self._link = link

    async def get(self) -> module._Link:
        return self._link


async def test_a_tokenizer_that_accepts_and_is_never_heard_ends_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_AFTER_S", 0.05)
    monkeypatch.setattr(module, "_WATCH_S", 0.02)
    link = module._Link(FakeClient({"tokenizer_id": "tokenizer-1", "prompt_tokens": 1}), "rz.v1.default")  # type: ignore[arg-type]
    await link.open()
    try:
        with pytest.raises(rz.BackendError, match="the tokenizer of this request is gone"):
            await asyncio.wait_for(anext(aiter(link.stream({"rid": "r"}))), 5)
    finally:
        await link.close()


async def test_a_flush_waits_for_a_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_AFTER_S", 0.2)
    client = FakeClient({"released_pages": 3})
    link = module._Link(client, "rz.v1.default")  # type: ignore[arg-type]
    backend = rz.NatsEndpoint()
    monkeypatch.setattr(backend, "_links", OneLink(link))
    async with asyncio.timeout(10):
        with pytest.raises(rz.BackendError, match="no scheduler"):
            await backend.flush_cache()
        flush = asyncio.create_task(backend.flush_cache())
        await asyncio.sleep(0)
        beat = orjson.dumps({"id": "scheduler-1", "service": "scheduler"})
        await link._on_heartbeat(SimpleNamespace(data=beat))  # type: ignore[arg-type]
        assert await flush == {"scheduler-1": {"released_pages": 3}}
    assert client.subjects == ["rz.v1.default.scheduler.scheduler-1.flush"]

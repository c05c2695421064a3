"""A streaming HTTP client that costs as little as possible, so that the server is what is measured.

It speaks just enough HTTP/1.1 and SSE for `POST ... stream=true`: it counts events and notes when they came, and
decodes only the end of the body. Works with every server that speaks the OpenAI protocol.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import cast

_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_CACHED_TOKENS = re.compile(rb'"cached_tokens":\s*(\d+)')
_END_OF_EVENT = b"\n\n"
_END_OF_STREAM = b"data: [DONE]"


@dataclass(slots=True)
class Stream:
    """One request from its first byte sent to its last byte received; times from `time.perf_counter`."""

    sent_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    """When a read brought the end of at least one event."""
    events: int = 0
    tokens: int = 0
    """Completion tokens by the server's own count."""
    cached_tokens: int = 0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.arrivals_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first; of at least two tokens."""
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.tokens - 1)

    @property
    def e2e_s(self) -> float:
        return self.arrivals_s[-1] - self.sent_s


async def stream(port: int, path: str, body: bytes) -> Stream:
    """POST `body` to 127.0.0.1 and read the event stream to its end; a failure is in `error`."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Stream] = loop.create_future()
    try:
        await loop.create_connection(lambda: _EventReader(head.encode() + body, done), "127.0.0.1", port)
    except OSError as fault:
        return Stream(error=str(fault))
    return await done


class _EventReader(asyncio.Protocol):
    """Counts events as they come; one instance per request."""

    def __init__(self, request: bytes, done: asyncio.Future[Stream]) -> None:
        self._request, self._done = request, done
        self._out = Stream()
        self._head: bytes | None = b""  # None once the body has begun
        self._rest = b""
        self._last: deque[bytes] = deque(maxlen=8)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._out.sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if self._head is not None:
            self._head += data
            head, blank, data = self._head.partition(b"\r\n\r\n")
            if not blank:
                return
            self._head = None
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                self._out.error = head.split(b"\r\n", 1)[0].decode(errors="replace")
        self._last.append(data)
        text = self._rest + data
        count = text.count(_END_OF_EVENT)
        if count:
            self._out.events += count
            self._out.arrivals_s.append(now_s)
            self._rest = text[text.rfind(_END_OF_EVENT) + 2 :]
            if _END_OF_STREAM in text:
                self._finish()
        else:
            self._rest = text

    def connection_lost(self, _: Exception | None) -> None:
        if not self._done.done():
            end = b"".join(self._last)[-300:].decode(errors="replace")
            self._out.error = f"{self._out.error} stream ended early: {end}".strip()
            self._finish()

    def _finish(self) -> None:
        end = b"".join(self._last)
        out = self._out
        counts = _COMPLETION_TOKENS.findall(end)
        out.tokens = int(counts[-1]) if counts else out.events - 1
        cached = _CACHED_TOKENS.findall(end)
        out.cached_tokens = int(cached[-1]) if cached else 0
        if not self._done.done():
            self._done.set_result(out)
        self._transport.close()

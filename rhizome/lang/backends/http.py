"""JSON and server-sent events over HTTP, for backends: one connection pool per event loop, bounded retries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp

from rhizome.lang.errors import BackendError
from rhizome.lang.loops import PerLoop

MAX_CONNECTIONS = 256
FIRST_RETRY_S = 0.25
_MAY_PASS = frozenset({429, 502, 503})


class HttpClient:
    """A server by its base URL.

    A refused connection, a full queue (429) and a service that is away (502, 503) are tried again up to `max_retries`
    times, with doubling waits, before anything of the answer has arrived. Cancelling a call closes its connection.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str] | None = None,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_retries: int = 4,
        timeout_s: float | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self.base_url = base_url.rstrip("/")
        self._max_retries = max_retries
        self._sessions = PerLoop(partial(_session, dict(headers or {}), max_connections, timeout_s))
        self.retries = 0
        """Calls tried again so far."""

    async def json(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer.

        Raises:
            BackendError: refused, unreachable, or no JSON.
        """
        async with self._call(method, path, body) as response:
            try:
                return await response.json(content_type=None)
            except ValueError as fault:
                raise BackendError(f"{method} {self.base_url}{path}: the answer is no JSON") from fault

    async def events(self, path: str, body: Any) -> AsyncIterator[Any]:
        """Decoded `data:` events of a POST, until `[DONE]` or the end."""
        async with self._call("POST", path, body) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        data = line[5:].strip()
                        if data == b"[DONE]":
                            return
                        yield json.loads(data)

    async def close(self) -> None:
        await self._sessions.close()

    def _late(self, method: str, url: str) -> BackendError:
        return BackendError(f"{method} {url}: no whole answer within timeout_s={self._timeout_s}")

    @asynccontextmanager
    async def _call(self, method: str, path: str, body: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        session, url, wait_s = await self._sessions.get(), self.base_url + path, FIRST_RETRY_S
        for attempt in range(self._max_retries + 1):
            last = attempt == self._max_retries
            try:
                response = await session.request(method, url, json=body)
            except aiohttp.ClientConnectionError as fault:
                if last:
                    raise BackendError(f"{method} {url}: {fault}") from fault
            except TimeoutError as fault:
                raise self._late(method, url) from fault
            else:
                async with response:
                    if response.status < 400:
                        try:
                            yield response
                        except aiohttp.ClientError as fault:
                            raise BackendError(f"{method} {url} broke off: {fault}") from fault
                        except TimeoutError as fault:
                            raise self._late(method, url) from fault
                        return
                    if last or response.status not in _MAY_PASS:
                        raise BackendError(f"{response.status}: {await _reason(response)}", response.status)
            self.retries += 1
            await asyncio.sleep(wait_s)
            wait_s *= 2


async def _session(
    headers: dict[str, str], max_connections: int, timeout_s: float | None
) -> AsyncGenerator[aiohttp.ClientSession, None]:
    connector = aiohttp.TCPConnector(limit=max_connections)
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=30.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        yield session


async def _reason(response: aiohttp.ClientResponse) -> str:
    """The server's message, from the shapes that servers use."""
    text = await response.text(errors="replace")
    try:
        body = json.loads(text)
    except ValueError:
        return text[:500] or response.reason or "no reason given"
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or error)
    return str(error)

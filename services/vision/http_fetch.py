"""Media over http and https from servers that nobody here trusts.

Names are resolved here, once per hop, and the connection goes to an address that was checked: a name that resolves
differently a moment later gains nothing. Redirects are followed by hand, each target checked like the first. Bytes are
counted while they arrive, the whole fetch has one deadline, and nothing is decompressed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.vision.addresses import AllowedHosts, is_public
from services.vision.budget import Grow
from shared.errors import InvalidRequest

MAX_REDIRECTS = 3
MAX_FETCHES = 128
_RESOLVERS = 32
_CHUNK_BYTES = 256 * 1024
_HEADERS = {"Accept": "image/*, video/*, */*;q=0.1", "Accept-Encoding": "identity", "User-Agent": "rhizome-vision"}
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) to its addresses; OSError when there are none."""


class SystemResolver:
    """Addresses as the system resolves them, in threads of its own: slow name servers hold up nothing else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host, port)

    @staticmethod
    def _look_up(host: str, port: int) -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class HttpFetch:
    """Fetches one URL after the other, each with a connection of its own. Lives as long as the service."""

    def __init__(
        self,
        allowed: AllowedHosts,
        max_bytes: int,
        timeout_s: float,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] = is_public,
    ) -> None:
        self._allowed, self._max_bytes, self._timeout_s = allowed, max_bytes, timeout_s
        self._resolve, self._is_public = resolve or SystemResolver(), is_public
        self._turn = asyncio.Semaphore(MAX_FETCHES)

    async def fetch(self, url: str, grow: Grow) -> bytes:
        """The body of a 200 answer.

        Args:
            grow: told of its bytes as they arrive.

        Raises:
            InvalidRequest: the URL is not allowed, or could not be fetched within the limits.
            Overloaded: `grow` says so.
        """
        try:
            async with self._turn, asyncio.timeout(self._timeout_s):
                return await self._follow(url, grow)
        except TimeoutError as fault:
            raise InvalidRequest(f"could not be fetched within {self._timeout_s:g} s: {_short(url)}") from fault
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            raise InvalidRequest(f"could not be fetched: {_short(url)}: {_reason(fault)}") from fault

    async def _follow(self, url: str, grow: Grow) -> bytes:
        target = URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await self._check(target)
            found = await self._get(target, addresses, grow)
            if isinstance(found, bytes):
                return found
            target = target.join(found)
        raise InvalidRequest(f"could not be fetched: {_short(url)}: more than {MAX_REDIRECTS} redirects")

    async def _check(self, target: URL) -> Sequence[str]:
        """The addresses to connect to."""
        shown = _short(str(target))
        if target.scheme not in ("http", "https") or not target.host or target.port is None:
            raise InvalidRequest(f"{shown} is not a http or https URL of a host")
        if target.user is not None or target.password is not None:
            raise InvalidRequest("a URL with a user name or password is not fetched")
        addresses = await self._resolve(target.host, target.port)
        if not addresses:
            raise InvalidRequest(f"could not be fetched: {shown}: the host has no address")
        if not self._allowed.has(target.host, target.port) and not all(map(self._is_public, addresses)):
            raise InvalidRequest(
                f"{shown} is not on the public internet, so it is not fetched (the operator may allow its host with "
                "--allowed-media-hosts)"
            )
        return addresses

    async def _get(self, target: URL, addresses: Sequence[str], grow: Grow) -> bytes | URL:
        """The body, or where to go instead."""
        connector = aiohttp.TCPConnector(resolver=_Checked(addresses), use_dns_cache=False, force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, headers=_HEADERS
            ) as session,
            session.get(target, allow_redirects=False) as response,
        ):
            if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                return URL(response.headers["Location"])
            if response.status != 200:
                raise InvalidRequest(f"could not be fetched: {_short(str(target))}: status {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise InvalidRequest(f"could not be fetched: {_short(str(target))}: the server compresses its answer")
            return await self._body(response, grow)

    async def _body(self, response: aiohttp.ClientResponse, grow: Grow) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            if len(body) + len(chunk) > self._max_bytes:
                raise InvalidRequest(f"could not be fetched: over the limit of {self._max_bytes:,} bytes")
            grow(len(chunk))
            body += chunk
        return bytes(body)


class _Checked(AbstractResolver):
    """Answers with the addresses that were checked, whatever the name means by now."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            )
            for address in self._addresses
        ]  # fmt: skip

    async def close(self) -> None:
        pass


def _short(url: str) -> str:
    return url if len(url) <= 100 else f"{url[:100]}..."


def _reason(fault: Exception) -> str:
    return str(fault)[:200] or type(fault).__name__

"""Hostile servers: each costs its request an error within bounds, and nothing else."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from aiohttp import web

from services.vision.addresses import AllowedHosts
from services.vision.budget import Ceiling, Grow
from services.vision.http_fetch import HttpFetch
from shared.errors import InvalidRequest, Overloaded
from tests.unit.vision.pictures import picture

PNG = picture()
LIMIT = 100_000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """One route; remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.handler: Handler = self._png
        self.port = 0

    @staticmethod
    async def _png(_: web.Request) -> web.StreamResponse:
        return web.Response(body=PNG, content_type="text/plain")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.handler(request)

    def url(self, path: str = "/a.png", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def fetch(self, url: str, timeout_s: float = 20.0, grow: Grow = lambda _: None, **more: object) -> bytes:
        allowed = AllowedHosts([f"127.0.0.1:{self.port}"])
        return await HttpFetch(allowed, LIMIT, timeout_s, **more).fetch(url, grow)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    serving = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serving.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    serving.port = runner.addresses[0][1]
    yield serving
    await runner.cleanup()


def redirecting(*targets: str) -> Handler:
    left = list(targets)

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": left.pop(0)}) if left else web.Response(body=PNG)

    return handler


async def test_the_body_comes_whatever_its_content_type(server: Server) -> None:
    assert await server.fetch(server.url()) == PNG
    assert server.requests[0].headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in server.requests[0].headers


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/", "http://127.0.0.1:1/", "http://[::1]:{port}/", "http://0.0.0.0:{port}/",
        "http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://127.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/", "http://169.254.169.254/latest/meta-data/", "https://10.0.0.1/",
    ],
)  # fmt: skip
async def test_private_addresses_are_refused_in_every_spelling(server: Server, url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"not on the public internet.*--allowed-media-hosts|could not be fetched"):
        await server.fetch(url.format(port=server.port))
    assert not server.requests


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest", "http://localhost:1/", "//127.0.0.2/", "file:///etc/passwd", "gopher://x/"],
)
async def test_a_redirect_is_checked_like_the_first_address(server: Server, target: str) -> None:
    server.handler = redirecting(target)
    with pytest.raises(InvalidRequest, match=r"not on the public internet|not a http or https URL"):
        await server.fetch(server.url())
    assert len(server.requests) == 1


async def test_three_redirects_are_followed_and_not_four(server: Server) -> None:
    server.handler = redirecting("/b", "c", server.url("/d"))
    assert await server.fetch(server.url("/x/a")) == PNG
    assert [request.path for request in server.requests] == ["/x/a", "/b", "/c", "/d"]
    server.handler = redirecting("/1", "/2", "/3", "/4")
    with pytest.raises(InvalidRequest, match="more than 3 redirects"):
        await server.fetch(server.url())


async def test_the_connection_goes_to_the_address_that_was_checked(server: Server) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    asked: list[tuple[str, int]] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return answers.pop(0)

    async def fetch() -> bytes:
        url = server.url(host="images.example")
        return await server.fetch(url, resolve=rebinding, is_public=lambda address: address == "127.0.0.1")

    assert await fetch() == PNG
    assert asked == [("images.example", server.port)]
    assert server.requests[0].headers["Host"] == f"images.example:{server.port}"
    with pytest.raises(InvalidRequest, match="not on the public internet"):
        await fetch()


async def test_one_private_address_among_public_ones_is_enough_to_refuse(server: Server) -> None:
    async def mixed(*_: object) -> Sequence[str]:
        return ["93.184.216.34", "127.0.0.1"]

    with pytest.raises(InvalidRequest, match="not on the public internet"):
        await server.fetch(server.url(host="images.example"), resolve=mixed)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://user:secret@example.com/a.png", "user name or password"),
        ("http:///a.png", "not a http or https URL|could not be fetched"),
        ("http://[::1/", "could not be fetched"),
        ("http://no.such.host.invalid/", "could not be fetched"),
        ("ftp://example.com/", "not a http or https URL"),
        ("http://exa mple.com:99999/", "could not be fetched"),
    ],
)
async def test_other_wrong_urls_are_refused_with_the_reason(server: Server, url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        await server.fetch(url)
    assert "secret" not in caught.value.message


async def test_an_endless_body_ends_at_the_limit(server: Server) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 10_000)

    server.handler = endless
    with pytest.raises(InvalidRequest, match="over the limit of 100,000 bytes"):
        await server.fetch(server.url())


async def test_a_server_that_drips_ends_with_the_time(server: Server) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.01)

    server.handler = drip
    with pytest.raises(InvalidRequest, match=r"could not be fetched within 0\.3 s"):
        await server.fetch(server.url(), timeout_s=0.3)


async def test_a_name_that_takes_for_ever_to_resolve_ends_with_the_time(server: Server) -> None:
    async def never(*_: object) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(InvalidRequest, match=r"within 0\.05 s"):
        await server.fetch(server.url(host="slow.example"), timeout_s=0.05, resolve=never)


async def test_compressed_answers_are_not_inflated(server: Server) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < LIMIT

    async def compressed(_: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    server.handler = compressed
    with pytest.raises(InvalidRequest, match="the server compresses its answer"):
        await server.fetch(server.url())


async def test_an_answer_shorter_than_it_said_is_an_error(server: Server) -> None:
    async def short(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x")
        assert request.transport is not None
        request.transport.close()
        return response

    server.handler = short
    with pytest.raises(InvalidRequest, match="could not be fetched"):
        await server.fetch(server.url())


@pytest.mark.parametrize("status", [204, 304, 403, 404, 500])
async def test_other_statuses_are_errors(server: Server, status: int) -> None:
    async def failing(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    server.handler = failing
    with pytest.raises(InvalidRequest, match=f"status {status}"):
        await server.fetch(server.url())


async def test_a_server_that_is_not_there_is_the_request_s_error() -> None:
    fetch = HttpFetch(AllowedHosts(["127.0.0.1"]), LIMIT, 5.0)
    with pytest.raises(InvalidRequest, match="could not be fetched"):
        await fetch.fetch("http://127.0.0.1:1/a.png", lambda _: None)


async def test_bytes_count_against_the_ceiling_of_all_fetches_as_they_arrive(server: Server) -> None:
    ceiling = Ceiling(len(PNG) * 3 // 2)
    with ceiling.hold() as first, ceiling.hold() as second:
        await server.fetch(server.url(), grow=first)
        assert ceiling.used_bytes == len(PNG)
        with pytest.raises(Overloaded, match="in work already"):
            await server.fetch(server.url(), grow=second)
    assert ceiling.used_bytes == 0

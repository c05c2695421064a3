from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress

import pytest

from rhizome.nats_server import EmbeddedNats
from shared.bus import NatsBus
from shared.errors import ConfigError
from shared.wire import MAX_PAYLOAD_BYTES


async def test_a_killed_server_comes_back_on_the_same_port_and_clients_find_it() -> None:
    said: list[str] = []
    heard = asyncio.Event()
    with EmbeddedNats() as server:
        url, pid = server.url, server.pid
        bus = await NatsBus.connect(url, "test")

        async def on_message(_: bytes, __: str) -> None:
            heard.set()

        await bus.subscribe("ping", on_message)
        watch = asyncio.create_task(server.keep_running(said.append))
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while not heard.is_set():
                await bus.publish("ping", b"")
                with suppress(TimeoutError):
                    await asyncio.wait_for(heard.wait(), 0.05)
        watch.cancel()
        assert (server.url, server.pid != pid) == (url, True)
        assert said[0] == "✗ nats-server: ended, starting it again"
        await bus.close()


async def test_it_takes_messages_as_large_as_ours(nats_bus: NatsBus) -> None:
    assert nats_bus.max_payload_bytes == MAX_PAYLOAD_BYTES


def test_a_taken_port_is_an_error_with_the_server_s_own_words() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        server = EmbeddedNats(holder.getsockname()[1])
        with pytest.raises(ConfigError, match=r"nats-server exited: .*address already in use"):
            server.start()
        server.close()


def test_stop_is_a_no_op_when_nothing_runs() -> None:
    server = EmbeddedNats()
    server.stop()
    assert not server.alive()
    server.close()

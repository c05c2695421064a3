"""`python -m services.gateway` as a process: start, drain on SIGTERM, clear start-up errors."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import sys

import pytest


async def launch(*argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway", *argv, stderr=asyncio.subprocess.PIPE
    )  # fmt: skip


async def test_it_starts_and_ends_on_sigterm(nats_url: str) -> None:
    process = await launch("--nats-url", nats_url, "--port=0", f"--deployment=t{secrets.token_hex(4)}")
    assert process.stderr is not None
    async for line in process.stderr:
        if b"listening" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, rest = await process.communicate()
    assert process.returncode == 0, rest
    assert b"Traceback" not in rest


@pytest.mark.parametrize("flags", [["--port=99999"], ["--max-n=0"], ["--no-such-flag"], ["--port=x"]])
async def test_a_bad_flag_is_a_start_up_error_that_names_it(flags: list[str]) -> None:
    process = await launch(*flags)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert flags[0].split("=")[0].encode() in err
    assert b"Traceback" not in err


async def test_a_port_in_use_is_said_so(nats_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await launch("--nats-url", nats_url, f"--port={taken.getsockname()[1]}")
        _, err = await process.communicate()
    assert process.returncode == 2
    assert b"in use" in err
    assert b"Traceback" not in err

"""Fixtures shared by all tests: a real NATS server on a free port, and buses on it or in memory."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rhizome.nats_server import EmbeddedNats
from shared.bus import Bus, LocalBus, NatsBus

# Triton chooses between compiler and interpreter when it is first imported, and transformers imports it: this is the
# only place early enough. Without an NVIDIA driver kernels are interpreted; only tests/unit/worker/kernels cares.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """What was imported for the tests stays until the end: no collection of garbage need look at it again.

    A process of pytest-xdist has five seconds for its end, in which pytest collects garbage five times. Libraries that
    report leaks at exit find their objects thawed.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Called where pytest-xdist is asked for several processes."""
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.shares import Shares

    return Shares(config, log)


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """URL of a NATS server that lives as long as the test session."""
    with EmbeddedNats() as server:
        yield server.url


@pytest.fixture
async def nats_bus(nats_url: str) -> AsyncIterator[NatsBus]:
    bus = await NatsBus.connect(nats_url, "test")
    yield bus
    await bus.close()


@pytest.fixture(params=["local", "nats"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """The same test on the in-memory bus and on a real server."""
    if request.param == "local":
        local = LocalBus()
        yield local
        await local.close()
    else:
        real = await NatsBus.connect(request.getfixturevalue("nats_url"), "test")
        yield real
        await real.close()

"""The life of a service process: flags, log, bus, actor, loop, exit code. Called by every `services/X/__main__.py`."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from shared.actor import Actor, default_name
from shared.config import CommonConfig, parse_config
from shared.errors import ConfigError

T = TypeVar("T")
Drain = Callable[[], Awaitable[None]]


class ServiceConfig(Protocol):
    """A configuration dataclass with the common options nested in it."""

    @property
    def common(self) -> CommonConfig: ...


def main(
    service: str,
    cls: type[Any],
    description: str,
    start: Callable[[Actor, Any], Awaitable[Drain | None]],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse flags, connect, `start(actor, config)`, run until SIGTERM or SIGINT.

    `start` subscribes and makes the service ready; it returns what finishes running work at shutdown.
    Returns the exit status: 0 after an orderly stop, 1 when the service cannot go on, 2 for a wrong configuration.
    """
    config = parse_config(cls, f"python -m services.{service}", description, argv)
    try:
        return run(_serve(service, config, start))
    except ConfigError as fault:
        print(f"{service}: {fault.message}", file=sys.stderr)
        return 2


def run(coro: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coro)
    return uvloop.run(coro)


async def _serve(service: str, config: ServiceConfig, start: Callable[[Actor, Any], Awaitable[Drain | None]]) -> int:
    from shared import log
    from shared.bus import NatsBus

    common = config.common
    name = common.name or default_name(service)
    logger = log.setup(name, common.log_level, common.log_format)
    bus = await NatsBus.connect(common.nats_url, name, logger.warning)
    actor = Actor(service, common, bus, logger)
    try:
        drain = await start(actor, config)
    except BaseException:
        await bus.close()
        raise
    gc.collect()
    gc.freeze()  # what start-up made stays: the collector need not look at it again
    return await actor.run(drain)

"""`python -m services.scheduler`: one scheduler on an existing NATS server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.scheduler.config import SchedulerConfig
from shared.actor import Actor
from shared.process import Drain
from shared.process import main as run_service


async def start(actor: Actor, config: SchedulerConfig) -> Drain:
    from services.scheduler.service import SchedulerService

    service = SchedulerService(actor, config)
    await service.start()
    return service.drain


def main(argv: Sequence[str] | None = None) -> int:
    description = "Queue, radix KV index and step loop of the engines that announce themselves to it."
    return run_service("scheduler", SchedulerConfig, description, start, argv)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m services.gateway`: one gateway on an existing NATS server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.gateway.config import GatewayConfig
from shared.actor import Actor
from shared.process import Drain
from shared.process import main as run_service


async def start(actor: Actor, config: GatewayConfig) -> Drain:
    from services.gateway.service import GatewayService

    service = GatewayService(actor, config)
    await service.start()
    return service.drain


def main(argv: Sequence[str] | None = None) -> int:
    return run_service("gateway", GatewayConfig, "HTTP gateway of a Rhizome deployment.", start, argv)


if __name__ == "__main__":
    sys.exit(main())

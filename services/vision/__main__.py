"""`python -m services.vision`: one vision instance on an existing NATS server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.vision.config import VisionConfig
from shared.actor import Actor
from shared.process import Drain
from shared.process import main as run_service


async def start(actor: Actor, config: VisionConfig) -> Drain:
    from services.vision.build import build_service, load_model

    service = await build_service(actor, config, load_model)
    await service.start()
    return service.drain


def main(argv: Sequence[str] | None = None) -> int:
    description = "Fetches, decodes and encodes images and videos for a vision-language model."
    return run_service("vision", VisionConfig, description, start, argv)


if __name__ == "__main__":
    sys.exit(main())

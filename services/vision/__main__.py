"""`python -m services.vision`: one vision instance on an existing NATS server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from services.vision.config import VisionConfig
from shared.actor import Actor
from shared.process import Drain
from shared.process import main as run_service

SPIN_COUNT = "1000"
"""GNU OpenMP threads wait actively this many rounds, then sleep: the worker beside us wants the core (see there)."""


async def start(actor: Actor, config: VisionConfig) -> Drain:
    from services.vision.build import build_service, load_model

    service = await build_service(actor, config, load_model)
    await service.start()
    return service.drain


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch is loaded
    description = "Fetches, decodes and encodes images and videos for a vision-language model."
    return run_service("vision", VisionConfig, description, start, argv)


if __name__ == "__main__":
    sys.exit(main())

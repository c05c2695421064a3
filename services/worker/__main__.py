"""`python -m services.worker`: one rank of one engine."""

from __future__ import annotations

import asyncio
import os
import sys

from services.worker.config import WorkerConfig
from shared import log
from shared.bus import NatsBus
from shared.config import parse_config
from shared.errors import ConfigError

SPIN_COUNT = "1000"
"""GNU OpenMP threads wait actively this many rounds, then sleep. With its default they spin through whole time slices
while another process has the core of the thread they wait for. Decode steps of a 135M model on 2 threads and 2 shared
cores took 268 to 1,826 ms with the default and 57 to 105 ms with this; 1 thread took 65 to 99 ms."""


def main() -> int:
    """Parse flags, connect, serve; returns the exit status."""
    config = parse_config(WorkerConfig, "services.worker", "Runs a model: executes the scheduler's step plans.")
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch is loaded
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_serve(config))
    return uvloop.run(_serve(config))


async def _serve(config: WorkerConfig) -> int:
    from services.worker.build import build_engine
    from services.worker.service import WorkerService

    logger = log.setup("worker", config.common.log_level, config.common.log_format)
    try:
        bus = await NatsBus.connect(config.common.nats_url, "worker", logger.warning)
        return await WorkerService(config, bus, logger, build_engine).run()
    except ConfigError as fault:
        logger.error(fault.message)
        return 2


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # The device thread may still wait in a collective for a rank that is gone: do not join it.
    os._exit(status)

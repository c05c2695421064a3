"""`python -m services.worker`: one rank of one engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from services.worker.config import WorkerConfig
from shared.actor import Actor
from shared.process import Drain
from shared.process import main as run_service

SPIN_COUNT = "1000"
"""GNU OpenMP threads wait actively this many rounds, then sleep. With its default they spin through whole time slices
while another process has the core of the thread they wait for. Decode steps of a 135M model on 2 threads and 2 shared
cores took 268 to 1,826 ms with the default and 57 to 105 ms with this; 1 thread took 65 to 99 ms."""


async def start(actor: Actor, config: WorkerConfig) -> Drain:
    from services.worker.build import build_engine
    from services.worker.service import WorkerService

    service = WorkerService(actor, config, build_engine)
    await service.start()
    return service.drain


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch is loaded
    return run_service("worker", WorkerConfig, "Runs a model: executes the scheduler's step plans.", start, argv)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # The device thread may still wait in a collective for a rank that is gone: do not join it.
    os._exit(status)

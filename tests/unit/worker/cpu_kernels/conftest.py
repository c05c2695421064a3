"""CPU kernel tests: new inputs every run, and threads as the machine has them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from services.worker.cpu_kernels.jit import most_threads, use_threads


@pytest.fixture(autouse=True)
def fresh_random_inputs() -> None:
    """The seed is printed with a failure."""
    seed = int.from_bytes(os.urandom(4), "little")
    torch.manual_seed(seed)
    print(f"seed {seed}")


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads that kernels use in the test, where there are so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    use_threads(most_threads())
    yield request.param
    torch.set_num_threads(before)
    use_threads(most_threads())

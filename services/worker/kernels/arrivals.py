"""How programs that split a sum between them find out which of them is the last, and adds up what all have written.

Called by the kernels of products with packed weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def last_to_arrive(counter: tl.tensor, SPLITS: tl.constexpr) -> tl.tensor:
    """Whether this program is the last of SPLITS to come here. It may then load (`.cg`) what the others stored before,
    and its counter is zero again, for the next launch."""
    tl.debug_barrier()  # every thread's stores before the one thread that tells of them
    last = tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1
    tl.debug_barrier()
    tl.store(counter, 0, mask=last)
    return last


def arrival_counters(device: torch.device) -> torch.Tensor:
    """What the programs of one output tile meet at; enough for any product that splits its inputs."""
    return torch.zeros(1 << 16, dtype=torch.int32, device=device)

"""Device tensors to the host without waiting for them: the counterpart of `upload.py`.

A plain copy to pageable memory makes the host wait for everything the device still has to do. Here copies into pinned
memory are queued behind the step that makes the values; who needs them waits for the step's last `Mark`.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

Mark = torch.cuda.Event | float
"""A point in the order of a device's work."""


def download(tensor: Tensor) -> Tensor:
    """A host tensor whose values are there once the device has passed a later mark; on CPU the tensor itself."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def mark(device: torch.device) -> Mark:
    """The end of what has been queued so far."""
    if device.type != "cuda":
        return time.perf_counter()
    # Blocking: who waits sleeps instead of spinning, and so leaves the core to the thread that launches.
    event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def wait(at: Mark) -> None:
    """Return when the device has passed the mark; other threads run meanwhile."""
    if not isinstance(at, float):
        with torch.cuda.device(at.device):  # a thread that chose no device would set up the first one
            at.synchronize()


def ms_between(first: Mark, then: Mark) -> float:
    """Milliseconds from one passed mark to another, by the device's clock."""
    if isinstance(first, float):
        assert isinstance(then, float)
        return (then - first) * 1e3
    assert not isinstance(then, float)
    return first.elapsed_time(then)

"""Host arrays to the device without waiting for it.

A plain copy of pageable memory makes the host wait for everything the device still has to do. Here arrays go through
pinned memory and the copy is only queued; torch keeps the pinned memory until the copy is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A tensor on `device` with the values of `array`; on CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_all(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> tuple[Tensor, ...]:
    """Vectors of one dtype as tensors on `device`, in one copy where the device has its own memory."""
    if device.type == "cpu":
        return tuple(torch.from_numpy(array) for array in arrays)
    return torch.split(upload(np.concatenate(arrays), device), [len(array) for array in arrays])

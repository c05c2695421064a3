"""Masks that PyTorch's attention adds to its scores."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.worker.upload import upload


def additive_mask(hidden: npt.NDArray[np.bool_], dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where `hidden`, else 0; of its shape."""
    return upload(np.where(hidden, np.float32(-math.inf), np.float32(0.0)), device).to(dtype)

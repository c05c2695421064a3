"""The seam between the engine and attention implementations, and the choice among them."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, Protocol

import torch

from services.worker.attention.torch_backend import TorchAttention
from services.worker.batch import Batch
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.rows import Rows
from shared.errors import ConfigError

BackendName = Literal["torch", "triton"]
_LEAST_HEAD_DIM = 16
"""Tensor cores multiply tiles of at least this width."""


class AttentionBackend(Protocol):
    """Made once per engine, for its pool and rows."""

    name: str

    def prepare(self, batch: Batch) -> Attend:
        """Plan one step: indices and masks that all layers share. The result is called once per layer, in order."""


def choose_backend(
    name: Literal["auto", "torch", "triton"], device: torch.device, *, head_dim: int, page_size: int
) -> BackendName:
    """What `--attention-backend` means here: auto is triton on CUDA where it can run, else torch.

    Raises:
        ConfigError: triton was asked for by name and cannot run.
    """
    if name == "torch" or (name == "auto" and device.type != "cuda"):
        return "torch"
    obstacle = _triton_obstacle(device, head_dim, page_size)
    if obstacle is None:
        return "triton"
    if name == "triton":
        raise ConfigError(f"--attention-backend triton: {obstacle}; use --attention-backend torch")
    return "torch"


def _triton_obstacle(device: torch.device, head_dim: int, page_size: int) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs a CUDA device"
    if page_size & (page_size - 1):
        return f"--page-size {page_size} is not a power of two"
    if head_dim < _LEAST_HEAD_DIM:
        return f"heads of {head_dim} elements are too narrow, {_LEAST_HEAD_DIM} is the least"
    return None


def make_backend(
    name: BackendName, pool: KvPool, rows: Rows, windows: list[int | None], num_q_heads: int
) -> AttentionBackend:
    """The backend that `choose_backend` named.

    Args:
        windows: sliding window of each layer; None = sees everything.
        num_q_heads: query heads of this rank.
    """
    if name == "torch":
        return TorchAttention(pool, rows, windows)
    from services.worker.attention.triton_backend import TritonAttention

    return TritonAttention(pool, rows, windows, num_q_heads)

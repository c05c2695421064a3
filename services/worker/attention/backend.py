"""The seam between the engine and attention implementations, and the choice among them."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Literal, Protocol

import torch

from services.worker.attention.flashinfer_modules import flashinfer_obstacle
from services.worker.attention.torch_backend import TorchAttention
from services.worker.batch import Batch
from services.worker.kv_pool import KvPool
from services.worker.models.llama import Attend
from services.worker.rows import Rows
from shared.errors import ConfigError

BackendName = Literal["torch", "numba", "triton", "flashinfer"]
_LEAST_HEAD_DIM = 16
"""Tensor cores multiply tiles of at least this width."""


class AttentionBackend(Protocol):
    """Made once per engine, for its pool and rows."""

    name: str

    def prepare(self, batch: Batch) -> Attend:
        """Plan one step: indices and masks that all layers share. The result is called once per layer, in order."""


def choose_backend(
    name: Literal["auto", "torch", "numba", "triton", "flashinfer"],
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int,
    page_size: int,
) -> BackendName:
    """What `--attention-backend` means here: auto is numba on CPU and triton on CUDA where they can run, else torch.

    Raises:
        ConfigError: a backend was asked for by name and cannot run.
    """
    wanted: BackendName = ("numba" if device.type == "cpu" else "triton") if name == "auto" else name
    match wanted:
        case "torch":
            obstacle = None
        case "numba":
            obstacle = _numba_obstacle(device, dtype)
        case "triton":
            obstacle = _triton_obstacle(device, head_dim, page_size)
        case "flashinfer":
            obstacle = flashinfer_obstacle(device, dtype, head_dim) or _triton_obstacle(device, head_dim, page_size)
    if obstacle is None:
        return wanted
    if name == "auto":
        return "torch"
    raise ConfigError(f"--attention-backend {name}: {obstacle}; use --attention-backend auto")


def _numba_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return "its kernels are for CPUs"
    if dtype != torch.float32:
        return f"its kernels compute in float32, not {str(dtype).removeprefix('torch.')}"
    try:
        importlib.import_module("numba")  # it refuses versions of numpy that it does not know
    except ImportError as fault:
        return f"numba cannot be imported ({fault})"
    return None


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
    name: BackendName,
    pool: KvPool,
    rows: Rows,
    windows: list[int | None],
    num_q_heads: int,
    dtype: torch.dtype,
    *,
    flashinfer_decodes: bool,
) -> AttentionBackend:
    """The backend that `choose_backend` named.

    Args:
        windows: sliding window of each layer; None = sees everything.
        num_q_heads: query heads of this rank.
        dtype: of the model's activations.
        flashinfer_decodes: that backend attends decode steps too, and not our kernels.
    """
    if name == "torch":
        return TorchAttention(pool, rows, windows)
    if name == "numba":
        from services.worker.attention.numba_backend import NumbaAttention

        return NumbaAttention(pool, rows, windows, num_q_heads)
    if name == "flashinfer":
        from services.worker.attention.flashinfer_backend import FlashInferAttention

        return FlashInferAttention(pool, rows, windows, num_q_heads, dtype, decodes=flashinfer_decodes)
    from services.worker.attention.triton_backend import TritonAttention

    return TritonAttention(pool, rows, windows, num_q_heads, dtype)

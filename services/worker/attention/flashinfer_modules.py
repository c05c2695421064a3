"""FlashInfer's compiled kernels: which ones an engine needs, and having them before the first request.

FlashInfer compiles a kernel for each dtype and head size from sources in its wheel when it is first asked for, which
takes a minute or more, and keeps it below `~/.cache/flashinfer` (or `FLASHINFER_WORKSPACE_BASE`). Here that happens at
the engine's start. The package is imported inside functions: it is no requirement of the worker.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.errors import ConfigError
from shared.log import Log

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (64, 128, 256)
LEAST_CAPABILITY, HOPPER = (8, 0), (9, 0)
TENSOR_CORE_GROUP = 4
"""Query heads per KV head from which decode fills enough of a matrix tile to be worth it; FlashInfer's own advice."""
OUTPUT_LINES = 20
"""Of a failed compilation, in the error."""


@dataclass(frozen=True, slots=True)
class Module:
    """One compiled module."""

    name: str
    is_built: bool
    load: Callable[[], object]
    """Builds it first where it is not built. Raises RuntimeError with the compiler's output, or OSError."""


def flashinfer_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why FlashInfer cannot run here; None = it can, if its kernels are built or can be."""
    if device.type != "cuda":
        return "it needs a CUDA device"
    if dtype not in DTYPES:
        return f"it computes in bfloat16 and float16, not {str(dtype).removeprefix('torch.')}: give --dtype"
    if head_dim not in HEAD_DIMS:
        return f"it has kernels for heads of 64, 128 and 256 elements, not {head_dim}"
    try:
        importlib.import_module("flashinfer")
    except (ImportError, OSError, RuntimeError) as fault:  # RuntimeError: versions of its packages that do not match
        return f"flashinfer cannot be imported ({fault}): pip install 'rhizome[flashinfer]'"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"it needs a card of compute capability 8.0, this one has {capability[0]}.{capability[1]}"
    return None


def prefill_kind(device: torch.device, dtype: torch.dtype) -> str:
    """FlashInfer's name of its fastest prefill kernels on this card: `fa3` on Hopper, else `fa2`."""
    choose: Any = importlib.import_module("flashinfer.utils").determine_attention_backend
    return str(choose(device, 0, False, False, dtype, dtype))  # no rotation, no fp16 reduction, no mask of its own


def decodes_on_tensor_cores(num_q_heads: int, num_kv_heads: int) -> bool:
    """Whether decode rows use the prefill kernels: which kernels an engine needs, and what its wrappers are told."""
    return num_q_heads >= TENSOR_CORE_GROUP * num_kv_heads


def modules_needed(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    num_q_heads: int,
    num_kv_heads: int,
    windows: Sequence[int | None],
) -> list[Module]:
    """What `FlashInferAttention` runs.

    Args:
        num_q_heads, num_kv_heads: of this rank.
        windows: sliding window of each layer; None = sees everything.
    """
    jit: Any = importlib.import_module("flashinfer.jit")
    prefill: Any = importlib.import_module("flashinfer.prefill").get_batch_prefill_module
    decode: Any = importlib.import_module("flashinfer.decode").get_batch_decode_module
    found = []

    def add(spec: Any, get: Any, *arguments: Any) -> None:
        found.append(Module(spec.name, bool(spec.is_compiled), lambda: get(*arguments)))

    for has_window in sorted({window is not None for window in windows}):
        # As the wrappers ask for them, so that they find them loaded: dtypes of queries, keys, results and indices,
        # head sizes, no rotation, the window, no soft cap (and for prefill, no fp16 reduction).
        same = (dtype, dtype, dtype, torch.int32, head_dim, head_dim, 0, has_window, False)
        for kind in sorted({"fa2", prefill_kind(device, dtype)}):
            add(jit.gen_batch_prefill_module(kind, *same, False), prefill, kind, *same, False)
        if not decodes_on_tensor_cores(num_q_heads, num_kv_heads):
            add(jit.gen_batch_decode_module(*same), decode, *same)
    return found


def built_modules(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    num_q_heads: int,
    num_kv_heads: int,
    windows: Sequence[int | None],
) -> list[Module] | None:
    """What `FlashInferAttention` runs, where nothing has to be compiled first and it is worth it: on Hopper, whose FA3
    is ahead of our kernels. Else None."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != HOPPER:
        return None
    if importlib.util.find_spec("flashinfer") is None or flashinfer_obstacle(device, dtype, head_dim) is not None:
        return None
    modules = modules_needed(device, dtype, head_dim, num_q_heads, num_kv_heads, windows)
    return modules if all(module.is_built for module in modules) else None


def load_modules(modules: Sequence[Module], nvcc: Path | None, log: Log) -> None:
    """Load what is built and build what is not; minutes of compilation the first time.

    Args:
        nvcc: the compiler, if there is one.

    Raises:
        ConfigError: something is to be built and cannot be.
    """
    missing = [module.name for module in modules if not module.is_built]
    if missing and nvcc is None:
        raise ConfigError(
            f"--attention-backend flashinfer: {len(missing)} of its kernels are not built ({missing[0]}) and there is "
            "no nvcc: install the CUDA toolkit and set CUDA_HOME, or use --attention-backend triton"
        )
    if missing:
        log.info("building flashinfer's kernels, which takes minutes the first time", modules=len(missing))
    started_s = time.perf_counter()
    for module in modules:
        try:
            module.load()
        except (RuntimeError, OSError) as fault:
            output = "\n".join(str(fault).strip().splitlines()[-OUTPUT_LINES:])
            raise ConfigError(
                f"--attention-backend flashinfer: {module.name} cannot be built or loaded; use --attention-backend "
                f"triton, or mend this:\n{output}"
            ) from fault
    if missing:
        log.info("flashinfer's kernels are built", seconds=round(time.perf_counter() - started_s, 1))


def find_nvcc() -> Path | None:
    """The compiler that FlashInfer will call."""
    get_cuda_path: Any = importlib.import_module("flashinfer.jit.cpp_ext").get_cuda_path
    try:
        nvcc = Path(os.environ.get("FLASHINFER_NVCC") or Path(get_cuda_path()) / "bin" / "nvcc")
    except RuntimeError:  # neither CUDA_HOME nor nvcc on the path
        return None
    return nvcc if nvcc.is_file() else None

"""How much memory there is and how many KV slots fit into it. Reads /proc, never the model."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from shared.errors import ConfigError

CPU_POOL_BYTES = 768 << 20
"""The default stack with its default model is to stay below 2.5 GB."""
CPU_FRACTION = 0.1
GPU_FRACTION = 0.9


def available_bytes(device: torch.device) -> int:
    """Memory that new allocations may use without pushing anything out."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what loading needed for a moment
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def total_bytes(device: torch.device) -> int:
    """Size of the device's memory; 0 where only what is free counts."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else 0


def used_bytes(device: torch.device) -> int:
    """Resident set of this process, or the memory it has allocated on the device; 0 where neither is known."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pool_tokens(
    *,
    slot_bytes: int,
    page_size: int,
    most_tokens: int,
    device: torch.device,
    max_total_tokens: int | None,
    fraction: float | None,
    available: int,
    total: int,
    activations: int,
) -> int:
    """KV slots to allocate, a multiple of `page_size`.

    Args:
        slot_bytes: bytes of one token over all layers.
        most_tokens: what all rows at full context need; more is never allocated.
        max_total_tokens, fraction: the flags; at most one is given.
        available: bytes free on the device now, the weights being there.
        total: bytes of the device, for a GPU.
        activations: bytes that a step needs for a moment.

    Raises:
        ConfigError: not even one page fits, or --max-total-tokens does not.
    """
    if max_total_tokens is not None:
        tokens = max_total_tokens
        if tokens * slot_bytes > available:
            raise ConfigError(
                f"--max-total-tokens {tokens:,} needs {tokens * slot_bytes:,} bytes, {available:,} are available"
            )
    else:
        if device.type == "cuda":
            budget = min((fraction or GPU_FRACTION) * total - (total - available), available - activations)
        else:
            budget = available * (fraction or CPU_FRACTION)
            if fraction is None:
                budget = min(budget, CPU_POOL_BYTES)
        tokens = max(int(budget), 0) // slot_bytes
    pages = min(tokens, most_tokens) // page_size
    if pages < 1:
        raise ConfigError(
            f"no KV page of {page_size} tokens fits ({page_size * slot_bytes:,} bytes of {available:,} available): "
            "free memory or raise --mem-fraction-static"
        )
    return pages * page_size

"""What the launchers know of a device and of the compiler. Called by the modules with kernels."""

from __future__ import annotations

import os
from functools import cache

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter, which knows no machine instructions."""

_HOPPER = 9, 0
SM_COUNT_INTERPRETED = 4
"""Where there is no GPU: the interpreter runs one program after the other, and few show as much as many."""

INDEX_POINTERS = [
    "rows", "seq_lens", "cu_q", "cu_blocks", "share_in", "share_out", "first_rows", "tile_rows", "tile_firsts",
    "num_tiles", "positions", "out_cache_loc", "tokens", "logprobs",
    "starts", "chunk_of", "place_of", "members", "cu_members", "chunk_blocks", "chunk_share",
    "kv_indptr",
]  # fmt: skip
"""Arguments that may be slices at any offset: their alignment must not select another compilation during serving."""


@cache
def sm_count(device: torch.device) -> int:
    """Multiprocessors of `device`."""
    if device.type != "cuda":
        return SM_COUNT_INTERPRETED
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether kernels for Hopper alone run there. Tensors of the CPU are launched with to compile for it, if not
    interpreted."""
    return not INTERPRETED and (device.type != "cuda" or torch.cuda.get_device_capability(device) == _HOPPER)

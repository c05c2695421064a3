"""Launches that begin while the one before is still ending: programmatic dependent launch, from Hopper on.

A step of one row is hundreds of launches of a few microseconds; without this each waits for the last program of the one
before, and the memory is idle meanwhile. A kernel that takes part has a constexpr OVERLAP, is launched with
`**overlap(device)`, and calls `wait_for_the_one_before` in every program before it touches what other kernels write: so
every kernel still sees all that was launched before it. `let_the_next_begin` comes late in kernels that fill the card,
and never right before attention: programs placed while the card is half full are not spread evenly, and a kernel
that was cut into equal shares then waits for the fullest multiprocessor. Called by the kernels of a decode step; off
until `launch_early` is called, since only products with packed weights were found to gain.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INTERPRETED

_early = False


def launch_early() -> None:
    """From now on, in this process. Called when a model is built whose weights are packed, before its first launch."""
    global _early
    _early = True


def overlap(device: torch.device) -> dict[str, bool]:
    """Options of a launch that takes part."""
    return _OPTIONS[_early and _able(device)]


_OPTIONS = {able: {"OVERLAP": able, "launch_pdl": able} for able in (False, True)}


@cache
def _able(device: torch.device) -> bool:
    """Tensors of the CPU are launched with to compile for a GPU, if not interpreted."""
    return not INTERPRETED and (device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0))


@triton.jit
def let_the_next_begin(OVERLAP: tl.constexpr) -> None:
    """The next kernel is placed once all programs of this one have come here or ended; else once they have ended."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_the_one_before(OVERLAP: tl.constexpr) -> None:
    """Returns when all launched before has ended, and what it wrote is seen."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(at: tl.tensor) -> None:
    """Ask for the lines of 128 bytes behind pointers of any shape to be brought to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )

"""How kernels are compiled, and on how many threads they run. The machine code is kept, and never stale.

numba notices a change of the file that holds a kernel, not of those whose functions the kernel calls. The cache is
therefore a folder named after the contents of this package. numba itself keeps apart what else matters: argument
types, its own version, the processor.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import torch

_config: Any = numba.config
_OPTIONS: dict[str, Any] = {"fastmath": True, "nogil": True, "boundscheck": False, "error_model": "numpy"}


def _cache_folder() -> Path | None:
    """Below NUMBA_CACHE_DIR or the user's cache; None = nowhere to write."""
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = os.environ.get("NUMBA_CACHE_DIR") or Path(users, "numba")
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    folder = Path(base, f"rhizome-{digest.hexdigest()[:16]}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


_folder = _cache_folder()
if _folder is not None:
    _config.CACHE_DIR = str(_folder)
# Loaded after torch, numba's OpenMP layer runs on torch's threads: they need not be woken between two matrix products.
_config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


class _Notes(threading.local):
    """Of this thread: who is told of every call of a kernel before it runs (`recording.py`)."""

    take: Callable[[Callable[..., None], tuple[Any, ...]], None] | None = None


notes = _Notes()


class Kernel:
    """A function compiled by numba, called with arrays and numbers."""

    __slots__ = ("compiled",)

    def __init__(self, compiled: Callable[..., None]) -> None:
        self.compiled = compiled

    def __call__(self, *args: Any) -> None:
        if notes.take is not None:
            notes.take(self.compiled, args)
        self.compiled(*args)


def kernel(function: Callable[..., None]) -> Kernel:
    """Called from Python; `prange` uses the threads of `use_threads`."""
    return Kernel(numba.njit(**_OPTIONS, parallel=True, cache=_folder is not None)(function))


inner = numba.njit(**_OPTIONS, inline="always")
"""Called from kernels. Part of its caller, so that a constant given to it is one."""


def is_compiled() -> bool:
    """Whether an earlier process left machine code here: half a second to load, 10 to 30 to compile."""
    return _folder is not None and any(_folder.rglob("*.nbi"))


def most_threads() -> int:
    """As many as torch uses, and no more than numba started."""
    return min(torch.get_num_threads(), int(_config.NUMBA_NUM_THREADS))


def use_threads(count: int) -> None:
    """How many threads work on the kernels that this thread calls from now on."""
    numba.set_num_threads(count)

"""What a call computes, noted so that it can be done again: to a CPU what a CUDA graph is to a GPU (`graphs.py`).

A decode step of a small model is hundreds of kernels of a few microseconds. Finding memory for their results, sizes and
views in Python takes as long as they do; a recording has done that once. It notes the calls of kernels
(`cpu_kernels/jit.py`) and, from PyTorch's dispatcher, every operator that computes. What the call does must depend on
nothing but the contents of memory: Python may read no value, and no shape may depend on one. As in a graph's pool,
memory that the call gave back while it was recorded is used again within it. Called by `recorded_decode.py`.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from services.worker.cpu_kernels.jit import notes

_aten = torch.ops.aten
_EMPTY = {
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default, _aten.new_empty.default,
    _aten.new_empty_strided.default,
}  # fmt: skip
_ALIGNMENT = 64


class NotRecordable(Exception):
    """The call does something that cannot be done again without Python."""


class Recording:
    """The calls, and the memory between them. Replayed by the thread that recorded it."""

    def __init__(self, function: Callable[[], Tensor]) -> None:
        """Call `function` once and note what it does.

        Raises:
            NotRecordable: it cannot be recorded.
        """
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._memory = _Memory()
        notes.take = self._note_kernel
        try:
            with _Noting(self._calls, self._memory):
                self._out = function()
        finally:
            notes.take = None

    def replay(self) -> Tensor:
        """What the function returned, computed again in the same memory."""
        for call, args in self._calls:
            call(*args)
        return self._out

    @property
    def nbytes(self) -> int:
        """Of the memory between the calls."""
        return self._memory.nbytes

    def _note_kernel(self, compiled: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._calls.append((compiled, tuple(self._memory.kept(arg) for arg in args)))


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Is told of every operator of PyTorch."""

    def __init__(self, calls: list[tuple[Callable[..., Any], tuple[Any, ...]]], memory: _Memory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls, self._memory = calls, memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags):
            raise NotRecordable(f"{func}: what follows depends on values")
        result = func(*args, **kwargs)
        if func in _EMPTY:
            return self._memory.like(result)
        changes = func._schema.is_mutable
        if not changes and not all(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            raise NotRecordable(f"{func}: Python reads a value")
        if not changes and _storages(result) <= _storages((args, kwargs)):
            return result  # a view: nothing to do again
        kept_args, kept_kwargs = tree_map(self._memory.kept, (args, kwargs))
        if changes:
            self._calls.append((_compute, (func, kept_args, kept_kwargs)))
            return result
        if not isinstance(result, Tensor):
            raise NotRecordable(f"{func}: has several results")
        out = self._memory.like(result).copy_(result)
        self._calls.append((_compute_into, (self._memory.kept(out), func, kept_args, kept_kwargs)))
        return out


def _storages(values: Any) -> set[int]:
    """Where the memory of all tensors among `values` begins."""
    return {
        leaf.untyped_storage().data_ptr()
        for leaf in tree_leaves(values)
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided
    }


def _compute(func: Any, args: Any, kwargs: Any) -> None:
    func(*args, **kwargs)


def _compute_into(out: Tensor, func: Any, args: Any, kwargs: Any) -> None:
    out.copy_(func(*args, **kwargs))


class _Memory:
    """Blocks that outlive the tensors in them, so that later tensors of a recording get those of earlier ones."""

    def __init__(self) -> None:
        self._blocks: dict[int, npt.NDArray[np.uint8]] = {}
        """By address."""
        self._free: list[tuple[int, int]] = []
        """(bytes, address), ascending"""

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._blocks.values())

    def like(self, tensor: Tensor) -> Tensor:
        """An unset contiguous tensor; the block is free again when the last view of it is gone."""
        wanted = max(_ALIGNMENT, -(-tensor.numel() * tensor.itemsize // _ALIGNMENT) * _ALIGNMENT)
        at = bisect.bisect_left(self._free, (wanted, 0))
        if at < len(self._free) and self._free[at][0] <= 2 * wanted:
            _, address = self._free.pop(at)
        else:
            whole = np.zeros(wanted + _ALIGNMENT, np.uint8)
            address = -(-whole.ctypes.data // _ALIGNMENT) * _ALIGNMENT
            self._blocks[address] = whole[address - whole.ctypes.data :][:wanted]
        block = self._blocks[address]
        lent = block[:]  # an array of its own, which lives as long as a tensor uses it
        weakref.finalize(lent, bisect.insort, self._free, (block.nbytes, address)).atexit = False
        used = torch.from_numpy(lent)[: tensor.numel() * tensor.itemsize]
        return used.view(tensor.dtype).view(tensor.shape)

    def kept(self, value: Any) -> Any:
        """`value`, or the same array or tensor as one that does not keep its memory from being used again."""
        if isinstance(value, np.ndarray):
            found = self._block_at(value.ctypes.data)
            if found is None:
                return value
            block, offset = found
            return np.ndarray(value.shape, value.dtype, block, offset, value.strides)
        if isinstance(value, Tensor) and value.layout is torch.strided:
            found = self._block_at(value.data_ptr())
            if found is None:
                return value
            block, offset = found
            return torch.from_numpy(block[offset:]).view(value.dtype).as_strided(value.shape, value.stride())
        return value

    def _block_at(self, address: int) -> tuple[npt.NDArray[np.uint8], int] | None:
        for start, block in self._blocks.items():
            if start <= address < start + block.nbytes:
                return block, address - start
        return None

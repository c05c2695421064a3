"""Sums of small tensors over the GPUs of a host in one kernel, without NCCL.

Every rank maps the others' buffers. *One shot*: a rank copies its part into its own buffer, meets the others, and adds
up all buffers itself; *two shot*: it adds up its share of the elements and takes the other shares from their ranks.
Both are kernels of torch (`torch.ops.symm_mem`), without NVLink multicast. They meet through flags in device memory
which they reset, so a CUDA graph may replay them. Used by `nccl_group.py`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

LIMITS = {2: (1 << 20, 16 << 20), 4: (256 << 10, 2 << 20), 8: (128 << 10, 1 << 20)}
"""Most bytes of a one-shot and of a two-shot sum by number of ranks; what is larger is NCCL's. Those of two ranks were
measured on H100s (`benchmarks.gpu --sections tp`), the others follow from what each rank reads.
"""
_DTYPES = (torch.bfloat16, torch.float32)
"""What torch's kernels add up."""
_ALIGNMENT = 16
Way = Literal["one-shot", "two-shot"]


def way_of(x: Tensor, size: int) -> Way | None:
    """How to sum `x` over `size` ranks; None = with NCCL. Decided by what is the same on every rank."""
    one_shot, two_shot = LIMITS.get(size, (0, 0))
    aligned = x.nbytes % _ALIGNMENT == 0 and x.storage_offset() * x.itemsize % _ALIGNMENT == 0
    if x.dtype not in _DTYPES or not x.is_contiguous() or not aligned or not x.nbytes:
        return None
    if x.nbytes <= one_shot:
        return "one-shot"
    return "two-shot" if x.nbytes <= two_shot else None


class SymmetricMemory:
    """A buffer on every rank, as large as the largest sum. Steps of one stream only."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, nbytes: int | None = None) -> None:
        """All ranks of `group` at once.

        Args:
            nbytes: of the buffer; None = what `way_of` needs.

        Raises:
            RuntimeError: from torch, the devices cannot map each other's memory.
            ValueError: no way is known for so many ranks.
        """
        import torch.distributed._symmetric_memory as symm_mem

        self._rank, self._size, self._name = group.rank(), group.size(), group.group_name
        nbytes = max(LIMITS.get(self._size, (0,))) if nbytes is None else nbytes
        if not nbytes:
            raise ValueError(f"not for {self._size} ranks")
        # Not `symm_mem.empty`: the buffer shall begin where its memory does, not somewhere in a pool.
        memory: Any = symm_mem._SymmetricMemory  # type: ignore[attr-defined]
        self._buffer = memory.empty_strided_p2p((nbytes,), (1,), torch.uint8, device)
        self._handle = symm_mem.rendezvous(self._buffer, group)  # keeps the others' memory mapped

    def all_reduce(self, x: Tensor, way: Way) -> Tensor:
        """Sum over the ranks, in place."""
        return self.one_shot(x) if way == "one-shot" else self.two_shot(x)

    def one_shot(self, x: Tensor) -> Tensor:
        """In place. x: bf16 or fp32, contiguous, a multiple of 16 bytes that the buffer holds."""
        torch.ops.symm_mem.one_shot_all_reduce_copy_out(self._place_of(x), x, "sum", self._name, x)
        return x

    def two_shot(self, x: Tensor) -> Tensor:
        """Like `one_shot`, for 2, 4 or 8 ranks."""
        mine = self._place_of(x).copy_(x)
        torch.ops.symm_mem.two_shot_all_reduce_out(mine, "sum", self._name, x)
        return x

    def adds_up(self) -> bool:
        """Run both ways once, all ranks together, and check the sums."""
        x = torch.arange(4096, dtype=torch.float32, device=self._buffer.device)
        total = x * (self._size * (self._size + 1) // 2)
        return all(torch.equal(way(x * (self._rank + 1)), total) for way in (self.one_shot, self.two_shot))

    def _place_of(self, x: Tensor) -> Tensor:
        return self._buffer[: x.nbytes].view(x.dtype).view(x.shape)

"""How the ranks of one engine share a model and talk to each other.

`Communicator` is the seam: `Alone` for one rank, `gloo_group.py` for processes on CPUs, `nccl_group.py` for GPUs. Model
code calls it without asking how many ranks there are; nothing here knows plans or messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from shared.errors import ConfigError
from shared.model_config import ModelConfig


class Communicator(Protocol):
    """Collectives between the ranks of an engine. Every rank makes the same calls in the same order."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place."""

    def gather_columns(self, x: Tensor, widths: list[int]) -> Tensor | None:
        """Put the ranks' [N, widths[rank]] side by side on rank 0; None elsewhere."""

    def from_first(self, x: Tensor) -> Tensor:
        """Rank 0's values, in place."""

    def all_integers(self, values: list[int]) -> list[list[int]]:
        """Every rank's integers (64 bit, the same number of them), by rank."""

    def all_texts(self, text: str) -> list[str]:
        """Every rank's text (at most 255 bytes), by rank."""

    def wait_for_all(self, timeout_s: float) -> None:
        """Return when every rank has called this. For work that takes the ranks differently long, as loading does.

        Raises:
            RuntimeError: from torch, a rank is gone or did not come.
        """


class Alone:
    """The only rank."""

    rank, size = 0, 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def gather_columns(self, x: Tensor, widths: list[int]) -> Tensor | None:
        return x

    def from_first(self, x: Tensor) -> Tensor:
        return x

    def all_integers(self, values: list[int]) -> list[list[int]]:
        return [values]

    def all_texts(self, text: str) -> list[str]:
        return [text]

    def wait_for_all(self, timeout_s: float) -> None:
        pass


def part(total: int, size: int, rank: int) -> slice:
    """The slice of `total` things that `rank` of `size` owns. Parts differ by one at most."""
    return slice(total * rank // size, total * (rank + 1) // size)


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank holds of a model: ranges of heads, vocabulary and MLP columns."""

    rank: int
    size: int
    q_heads: slice
    kv_heads: slice
    vocab: slice
    vocab_widths: list[int]
    """Vocabulary columns of every rank."""

    @property
    def num_q_heads(self) -> int:
        return int(self.q_heads.stop - self.q_heads.start)

    @property
    def num_kv_heads(self) -> int:
        return int(self.kv_heads.stop - self.kv_heads.start)

    def columns(self, total: int) -> slice:
        """The rank's columns of an MLP that has `total`, dense or one expert's."""
        return part(total, self.size, self.rank)


def shard_model(config: ModelConfig, size: int, rank: int) -> Shard:
    """Divide a model: whole KV groups while there are enough, else each KV head on several ranks.

    With fewer ranks than KV heads the groups need not divide evenly (3 KV heads on 2 ranks are 1 and 2).

    Raises:
        ConfigError: --tp-size does not fit the model's head counts.
    """
    heads, kv_heads = config.num_q_heads, config.num_kv_heads
    group = heads // kv_heads
    if heads % kv_heads:
        raise ConfigError(f"{heads} query heads do not divide among {kv_heads} key-value heads: broken config.json?")
    if size <= kv_heads:
        kv = part(kv_heads, size, rank)
        q = slice(kv.start * group, kv.stop * group)
    else:
        copies = size // kv_heads
        if size % kv_heads or group % copies:
            raise ConfigError(f"--tp-size {size} does not fit {heads} query and {kv_heads} key-value heads")
        kv = slice(rank // copies, rank // copies + 1)
        q = part(heads, size, rank)
    vocab = [part(config.vocab_size, size, r) for r in range(size)]
    return Shard(
        rank=rank,
        size=size,
        q_heads=q,
        kv_heads=kv,
        vocab=vocab[rank],
        vocab_widths=[v.stop - v.start for v in vocab],
    )

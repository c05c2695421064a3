"""The work that throughput is measured with: token ids in, exact numbers of tokens out.

The first three are what vLLM, SGLang and mini-sglang were measured with for `docs/benchmarks.md`; the last is the
set-up that nano-vllm and mini-sglang publish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Work:
    """One request."""

    prompt: I32
    output: int
    """Tokens to generate, EOS ignored."""


def sharegpt_like(rng: np.random.Generator, vocab: int) -> list[Work]:
    """1,000 requests of log-normal lengths: mean 220 in (sigma 1.0, 4 to 2048), mean 200 out (sigma 0.8, 4 to 1024)."""
    prompts = _log_normal(rng, 1000, 220, 1.0, 4, 2048)
    outputs = _log_normal(rng, 1000, 200, 0.8, 4, 1024)
    return [Work(_tokens(rng, vocab, p), int(o)) for p, o in zip(prompts, outputs, strict=True)]


def shared_prefix(rng: np.random.Generator, vocab: int) -> list[Work]:
    """64 groups of 16 requests, 1,024 tokens shared in a group and 64 own ones, 32 out, groups interleaved."""
    groups = [_tokens(rng, vocab, 1024) for _ in range(64)]
    return [Work(np.concatenate((group, _tokens(rng, vocab, 64))), 32) for _ in range(16) for group in groups]


def decode_heavy(rng: np.random.Generator, vocab: int) -> list[Work]:
    """256 requests, 128 in, 512 out."""
    return [Work(_tokens(rng, vocab, 128), 512) for _ in range(256)]


def uniform(rng: np.random.Generator, vocab: int) -> list[Work]:
    """256 requests, 100 to 1,024 in and as many out, uniform."""
    lengths = rng.integers(100, 1025, (256, 2))
    return [Work(_tokens(rng, vocab, int(p)), int(o)) for p, o in lengths]


WORKLOADS: dict[str, Callable[[np.random.Generator, int], list[Work]]] = {
    "sharegpt-like": sharegpt_like, "shared-prefix": shared_prefix, "decode": decode_heavy, "uniform": uniform,
}  # fmt: skip


def _tokens(rng: np.random.Generator, vocab: int, count: int) -> I32:
    return rng.integers(0, vocab, count).astype(np.int32)


def _log_normal(
    rng: np.random.Generator, count: int, mean: float, sigma: float, least: int, most: int
) -> npt.NDArray[np.int64]:
    values = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(values, least, most).astype(np.int64)

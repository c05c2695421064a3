"""Steps over a small pool, and that two attention backends compute and store the same in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from services.worker.attention.backend import AttentionBackend
from services.worker.attention.torch_backend import TorchAttention
from services.worker.batch import Batch, build_batch
from services.worker.kv_pool import KvPool
from services.worker.models.rope import QkNorm, Rotary, Rotation
from services.worker.plan_check import Work
from services.worker.rows import Rows
from shared.model_config import RopeScaling
from tests.unit.worker.kernels.closeness import assert_close

HEADS, GROUPS, DIM, CONTEXT, MAX_ROWS = 4, 2, 16, 96, 6
WINDOWS: list[int | None] = [None, 5]
NONE = np.zeros(0, np.int64)

Extends = dict[int, tuple[int, int]]
"""Row to (tokens in the pool, new tokens)."""


def i64(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


def make_batch(rows: Rows, extends: Extends, decodes: dict[int, int], min_tokens: int) -> Batch:
    """A step over rows whose pages are scattered; `decodes` maps row to tokens in the pool."""
    free = np.random.default_rng(3).permutation(MAX_ROWS * CONTEXT // rows.page_size) + 1
    lengths = {
        **{row: start + count for row, (start, count) in extends.items()},
        **{r: n + 1 for r, n in decodes.items()},
    }
    for row, length in lengths.items():
        pages, free = np.split(free, [-(-length // rows.page_size)])
        rows.append_pages(np.full(len(pages), row), pages, np.ones_like(pages))
    rows.lengths[list(decodes)] = list(decodes.values())
    lens = i64([count for _, count in extends.values()])
    work = Work(
        new_rows=[], page_rows=NONE, page_starts=NONE, page_lens=NONE, ext_rows=i64(list(extends)),
        ext_starts=i64([start for start, _ in extends.values()]), ext_lens=lens,
        ext_tokens=np.zeros(lens.sum(), np.int64), ext_sample=np.ones_like(lens), ext_lp_starts=NONE, ext_next=NONE,
        ext_forced=np.zeros_like(lens), decode_rows=i64(list(decodes)), masked_rows=NONE,
    )  # fmt: skip
    return build_batch(work, rows, min_tokens)


def make_pool(page_size: int, device: torch.device) -> KvPool:
    """Random content, the same in every pool of a test."""
    pool = KvPool(
        num_layers=len(WINDOWS), num_pages=MAX_ROWS * CONTEXT // page_size, page_size=page_size, num_kv_heads=GROUPS,
        head_dim=DIM, dtype=torch.float32, device=device,
    )  # fmt: skip
    for index, layer in enumerate(pool.layers):
        layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(index)))
    return pool


STEPS = pytest.mark.parametrize(
    ("extends", "decodes", "min_tokens"),
    [
        ({}, {1: 33, 4: 0, 2: 7}, 1),
        ({0: (0, 19), 3: (21, 2)}, {}, 1),
        ({5: (4, 17), 1: (0, 1)}, {0: 40, 2: 3}, 1),
        ({}, {3: 12}, 4),
    ],
    ids=["decode", "extend", "mixed", "padded"],
)


def assert_same_as_torch(
    make: Callable[[KvPool, Rows], AttentionBackend],
    extends: Extends,
    decodes: dict[int, int],
    min_tokens: int,
    *,
    normed: bool,
    page_size: int,
    device: torch.device,
) -> None:
    rows = Rows(MAX_ROWS, CONTEXT // page_size, page_size, device)
    batch = make_batch(rows, extends, decodes, min_tokens)
    ours, theirs = make_pool(page_size, device), make_pool(page_size, device)
    steps = [make(ours, rows).prepare(batch), TorchAttention(theirs, rows, WINDOWS).prepare(batch)]
    rotary = Rotary(RopeScaling(), DIM, CONTEXT, torch.float32, device)
    norm: QkNorm | None = (torch.rand(DIM, device=device), torch.rand(DIM, device=device), 1e-6) if normed else None
    for layer in range(len(WINDOWS)):
        qkv = torch.randn(batch.num_tokens, (HEADS + 2 * GROUPS) * DIM, device=device)
        got, want = (step(layer, qkv.clone(), Rotation(rotary, batch.positions), norm).clone() for step in steps)
        assert_close(got, want)
        assert_close(ours.layers[layer][page_size:], theirs.layers[layer][page_size:])

"""FlashInfer's attention over the engine's pool, against the reference in float64."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from services.worker.attention.flashinfer_modules import (
    find_nvcc,
    flashinfer_obstacle,
    load_modules,
    modules_needed,
)
from services.worker.batch import build_batch
from services.worker.kernels.reference.attention import paged_attention
from services.worker.kv_pool import KvPool
from services.worker.models.rope import Rotary, Rotation
from services.worker.plan_check import Work
from services.worker.rows import Rows
from shared.log import Log
from shared.model_config import RopeScaling
from tests.unit.worker.kernels.closeness import assert_close

CUDA = torch.device("cuda", 0)
OBSTACLE = (
    "needs a CUDA device" if not torch.cuda.is_available() else flashinfer_obstacle(CUDA, torch.bfloat16, 128) or ""
)
pytestmark = pytest.mark.skipif(bool(OBSTACLE), reason=f"flashinfer: {OBSTACLE}")

CONTEXT, MAX_ROWS = 2048, 12
NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Shape:
    """Heads, and the windows of layers."""

    num_q_heads: int
    num_kv_heads: int
    dim: int
    windows: list[int | None]


SHAPES = {
    "decode on matrix units": Shape(8, 2, 128, [None]),
    "windows": Shape(8, 2, 64, [None, 100]),
    "decode on other units": Shape(4, 2, 64, [None, 100]),
}


class Case:
    """A backend over a random pool whose pages lie scattered, and rows of the given lengths."""

    def __init__(self, shape: Shape, page_size: int) -> None:
        from services.worker.attention.flashinfer_backend import FlashInferAttention

        self.shape, self.page_size, dim = shape, page_size, shape.dim
        heads = (shape.num_q_heads, shape.num_kv_heads)
        modules = modules_needed(CUDA, torch.bfloat16, dim, *heads, shape.windows)
        load_modules(modules, find_nvcc(), Log(logging.getLogger("rhizome"), {}))
        self.pool = KvPool(
            num_layers=len(shape.windows), num_pages=MAX_ROWS * CONTEXT // page_size, page_size=page_size,
            num_kv_heads=shape.num_kv_heads, head_dim=dim, dtype=torch.bfloat16, device=CUDA,
        )  # fmt: skip
        for layer in self.pool.layers:
            layer.normal_()
        self.rows = Rows(MAX_ROWS, CONTEXT // page_size, page_size, CUDA)
        pages = np.random.default_rng(1).permutation(self.pool.num_pages) + 1
        each = np.full(len(pages), 1)
        self.rows.append_pages(np.repeat(np.arange(MAX_ROWS), len(pages) // MAX_ROWS), pages, each)
        self.attention = FlashInferAttention(self.pool, self.rows, shape.windows, heads[0], torch.bfloat16)
        self.rotary = Rotary(RopeScaling(), dim, CONTEXT, torch.bfloat16, CUDA)
        self.rotary.table[:, : dim // 2], self.rotary.table[:, dim // 2 :] = 1.0, 0.0  # turns nothing

    def qkv(self, tokens: int) -> torch.Tensor:
        width = (self.shape.num_q_heads + 2 * self.shape.num_kv_heads) * self.shape.dim
        return torch.randn(tokens, width, device=CUDA).bfloat16()

    def check(
        self, layer: int, qkv: torch.Tensor, out: torch.Tensor, rows: Sequence[int], lens: Sequence[int],
        q_lens: Sequence[int],
    ) -> None:  # fmt: skip
        """Tokens of `rows` come first; `lens` include them."""
        count, heads, dim = sum(q_lens), self.shape.num_q_heads, self.shape.dim
        q = qkv[:count, : heads * dim].view(count, heads, dim)
        cu_q = torch.tensor([0, *q_lens], device=CUDA).cumsum(0)
        want = paged_attention(
            q.double(), *self.pool.keys_and_values(layer), self.rows.page_table.device, torch.tensor(list(rows)),
            torch.tensor(list(lens)), cu_q, page_size=self.page_size, scale=dim**-0.5,
            window=self.shape.windows[layer] or 0,
        )  # fmt: skip
        assert_close(out[:count].view(count, heads, dim), want)


def i64(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "extends",
    [{3: (0, 700), 0: (1000, 70)}, {3: (0, 3), 0: (1900, 9), 5: (40, 1)}, {}],
    ids=["prompts", "short", "decode only"],
)
@torch.inference_mode()
def test_a_step_of_any_rows_equals_the_reference(
    extends: dict[int, tuple[int, int]], shape: str, page_size: int
) -> None:
    case, decodes = Case(SHAPES[shape], page_size), {7: 1, 2: 17, 9: 1500, 1: 333}
    case.rows.seq_lens.put(i64(list(decodes)), i64([length - 1 for length in decodes.values()]))
    lens = i64([count for _, count in extends.values()])
    work = Work(
        new_rows=[], page_rows=NONE, page_starts=NONE, page_lens=NONE, ext_rows=i64(list(extends)),
        ext_starts=i64([start for start, _ in extends.values()]), ext_lens=lens,
        ext_tokens=np.zeros(lens.sum(), np.int64), ext_sample=np.ones_like(lens), ext_lp_starts=NONE, ext_next=NONE,
        ext_forced=np.zeros_like(lens), decode_rows=i64(list(decodes)), masked_rows=NONE,
    )  # fmt: skip
    batch = build_batch(work, case.rows, min_tokens=16)
    attend, rotation = case.attention.prepare(batch), Rotation(case.rotary, batch.positions)
    rows = [*extends, *batch.decode_rows.tolist()]
    seen = [*(start + count for start, count in extends.values()), *batch.decode_lens.tolist()]
    for layer in range(len(case.shape.windows)):
        qkv = case.qkv(batch.num_tokens)
        out = attend(layer, qkv.clone(), rotation, None)
        case.check(layer, qkv, out, rows, seen, [*lens.tolist(), *[1] * len(decodes)])


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_a_captured_decode_step_follows_the_plans_that_are_made_before_its_replays(shape: str, page_size: int) -> None:
    with torch.inference_mode(False):  # as an engine makes it
        case, size = Case(SHAPES[shape], page_size), 8
    rows = torch.full((size,), -1, dtype=torch.int32, device=CUDA)
    positions, slots = torch.zeros((2, size), dtype=torch.int64, device=CUDA)
    layers = range(len(case.shape.windows))
    qkv = [case.qkv(size) for _ in layers]

    def forward() -> list[torch.Tensor]:
        attend = case.attention.attend_decode(rows, positions + 1, slots, None)
        rotation = Rotation(case.rotary, positions)
        return [attend(layer, qkv[layer].clone(), rotation, None).clone() for layer in layers]  # one buffer for all

    case.attention.plan_decode(NONE, size)
    forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = forward()
    for lengths in ({2: 5}, {5: 2048, 0: 1, 3: 800, 8: 16, 4: 17, 11: 99, 1: 1024, 7: 640}, {4: 18, 2: 1999}):
        numbers, seen = i64(list(lengths)), i64(list(lengths.values()))
        count = len(numbers)
        case.attention.plan_decode(seen, size)
        rows.fill_(-1)[:count] = torch.from_numpy(numbers).int().cuda()
        positions.zero_()[:count] = torch.from_numpy(seen - 1).cuda()
        slots.fill_(-1)[:count] = torch.from_numpy(case.rows.slots(numbers, seen - 1)).cuda()
        for part in qkv:
            part.copy_(case.qkv(size))
        graph.replay()
        for layer, out in enumerate(outs):
            case.check(layer, qkv[layer], out, list(lengths), seen.tolist(), [1] * count)

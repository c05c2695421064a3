"""The numba backend computes and stores what the torch backend does; nothing is compiled once an engine is ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.worker.attention.numba_backend import NumbaAttention
from services.worker.cpu_kernels.decode_attention import decode_kernel
from services.worker.cpu_kernels.rms_norm import add_rms_norm, rms_norm
from services.worker.cpu_kernels.rotary import rotate_and_store
from services.worker.cpu_kernels.silu_and_mul import silu_and_mul
from tests.unit.worker.attention_case import HEADS, STEPS, WINDOWS, Extends, assert_same_as_torch
from tests.unit.worker.driver import Driver, make_engine


@pytest.mark.parametrize(("page_size", "normed"), [(1, False), (16, True)])
@STEPS
def test_the_numba_backend_equals_the_torch_backend(
    extends: Extends, decodes: dict[int, int], min_tokens: int, normed: bool, page_size: int
) -> None:
    assert_same_as_torch(
        lambda pool, rows: NumbaAttention(pool, rows, WINDOWS, HEADS),
        extends, decodes, min_tokens, normed=normed, page_size=page_size, device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama-biased", "mistral-window", "qwen3"])
def test_an_engine_on_kernels_generates_what_one_on_operators_does(
    checkpoint: Callable[[str], tuple[Path, Any]], family: str
) -> None:
    path, _ = checkpoint(family)
    prompts = [list(range(5, 60)), [20, 21, 22], list(range(100, 130))]
    ours, theirs = (
        Driver(make_engine(path, attention_backend=backend)).generate(prompts, 12, chunk=7)
        for backend in ("numba", "torch")
    )
    assert ours == theirs


def test_a_warm_engine_compiles_nothing_more(checkpoint: Callable[[str], tuple[Path, Any]]) -> None:
    path, _ = checkpoint("qwen3")
    engine = make_engine(path, attention_backend="numba")
    kernels = (decode_kernel(16), rms_norm, add_rms_norm, rotate_and_store, silu_and_mul)
    before = [len(kernel.compiled.signatures) for kernel in kernels]
    Driver(engine).generate([list(range(5, 40)), [7]], 5, chunk=9)
    assert all(before)
    assert [len(kernel.compiled.signatures) for kernel in kernels] == before

"""The triton backend computes and stores what the torch backend does, for decode, extend and mixed steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.worker.attention.triton_backend import TritonAttention
from tests.unit.worker.attention_case import HEADS, STEPS, WINDOWS, Extends, assert_same_as_torch
from tests.unit.worker.driver import Driver, make_engine


@pytest.mark.parametrize(("page_size", "normed"), [(1, False), (16, True)])
@STEPS
def test_the_triton_backend_equals_the_torch_backend(
    extends: Extends, decodes: dict[int, int], min_tokens: int, normed: bool, page_size: int, device: torch.device
) -> None:
    assert_same_as_torch(
        lambda pool, rows: TritonAttention(pool, rows, WINDOWS, HEADS),
        extends, decodes, min_tokens, normed=normed, page_size=page_size, device=device,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe"])
def test_an_engine_on_kernels_generates_what_one_on_operators_does(
    checkpoint: Callable[[str], tuple[Path, Any]], family: str, device: torch.device
) -> None:
    path, _ = checkpoint(family)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22]]
    flags = {"device": device.type, "dtype": "float32", "max_running_requests": 2, "max_total_tokens": 256}
    ours, theirs = (
        Driver(make_engine(path, attention_backend=backend, **flags)).generate(prompts, 3, chunk=4)
        for backend in ("triton", "torch")
    )
    assert ours == theirs

"""The triton backend computes and stores what the torch backend does, for decode, extend and mixed steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.attention.triton_backend import TritonAttention
from shared.messages.step import RowInit
from tests.unit.worker.attention_case import HEADS, STEPS, WINDOWS, Extends, assert_same_as_torch
from tests.unit.worker.driver import Driver, Extend, make_engine


@pytest.mark.parametrize(("page_size", "normed"), [(1, False), (16, True)])
@STEPS
def test_the_triton_backend_equals_the_torch_backend(
    extends: Extends, decodes: dict[int, int], min_tokens: int, normed: bool, page_size: int, device: torch.device
) -> None:
    assert_same_as_torch(
        lambda pool, rows: TritonAttention(pool, rows, WINDOWS, HEADS, pool.dtype),
        extends, decodes, min_tokens, normed=normed, page_size=page_size, device=device,
    )  # fmt: skip


@pytest.mark.usefixtures("small_programs")
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


@pytest.mark.usefixtures("small_programs")
def test_an_engine_with_an_fp8_pool_gives_nearly_the_same_distribution(
    checkpoint: Callable[[str], tuple[Path, Any]], device: torch.device
) -> None:
    path, _ = checkpoint("qwen3")
    tokens = np.random.default_rng(5).integers(3, 90, 20).tolist()
    found = []
    for kv_dtype in ("fp8_e4m3", "auto"):
        engine = make_engine(
            path, device=device.type, dtype="float32", attention_backend="triton", kv_cache_dtype=kv_dtype,
            max_running_requests=2, max_total_tokens=256,
        )  # fmt: skip
        driver = Driver(engine)
        driver.run([Extend(0, tokens[:4], sample=False)], new=[RowInit(0, temperature=0.0, return_logprob=True)])
        chunk = driver.run([Extend(0, tokens[4:], 4, lp_start=5)])  # its keys and values are read from the pool
        assert chunk.prompt_logprobs is not None
        found.append(chunk.prompt_logprobs)
    assert (found[0] != found[1]).any()
    assert np.corrcoef(found[0], found[1])[0, 1] > 0.9

"""Which attention backend `--attention-backend` gives, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from services.worker.attention.backend import choose_backend
from shared.errors import ConfigError
from tests.unit.worker.driver import make_engine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F32, BF16 = torch.float32, torch.bfloat16
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize(("dtype", "want"), [(F32, "numba"), (BF16, "torch")])
def test_a_cpu_gets_numba_for_the_dtype_that_its_kernels_know(dtype: torch.dtype, want: str) -> None:
    assert choose_backend("auto", CPU, dtype, head_dim=64, page_size=16) == want


def test_a_cpu_without_numba_gets_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert choose_backend("auto", CPU, F32, head_dim=64, page_size=16) == "torch"
    with pytest.raises(ConfigError, match="--attention-backend numba: numba cannot be imported"):
        choose_backend("numba", CPU, F32, head_dim=64, page_size=16)


@pytest.mark.parametrize(
    ("device", "dtype", "says"), [(CUDA, F32, "kernels are for CPUs"), (CPU, BF16, "compute in float32, not bfloat16")]
)
def test_numba_by_name_says_why_it_cannot_run(device: torch.device, dtype: torch.dtype, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_backend("numba", device, dtype, head_dim=64, page_size=16)


@needs_triton
@pytest.mark.parametrize(("head_dim", "page_size", "want"), [(64, 16, "triton"), (64, 12, "torch"), (8, 16, "torch")])
def test_a_gpu_gets_triton_where_the_shape_allows_it(head_dim: int, page_size: int, want: str) -> None:
    assert choose_backend("auto", CUDA, BF16, head_dim=head_dim, page_size=page_size) == want


@needs_triton
@pytest.mark.parametrize(
    ("device", "head_dim", "page_size", "says"),
    [
        (CPU, 64, 16, "needs a CUDA device"),
        (CUDA, 64, 12, "--page-size 12 is not a power of two"),
        (CUDA, 8, 16, "8 elements are too narrow"),
    ],
)
def test_triton_by_name_says_why_it_cannot_run(
    device: torch.device, head_dim: int, page_size: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=says):
        choose_backend("triton", device, BF16, head_dim=head_dim, page_size=page_size)


def test_an_fp8_pool_without_the_kernels_that_read_it_is_a_start_up_error(llama: tuple[Path, Any]) -> None:
    with pytest.raises(ConfigError, match="--kv-cache-dtype fp8_e4m3 needs the triton attention backend"):
        make_engine(llama[0], attention_backend="torch", kv_cache_dtype="fp8_e4m3")

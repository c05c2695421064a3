"""Which attention backend `--attention-backend` gives, and what it says when it cannot."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from services.worker.attention.backend import choose_backend
from shared.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_torch_is_what_a_cpu_gets() -> None:
    assert choose_backend("auto", CPU, head_dim=64, page_size=16) == "torch"


@needs_triton
@pytest.mark.parametrize(("head_dim", "page_size", "want"), [(64, 16, "triton"), (64, 12, "torch"), (8, 16, "torch")])
def test_a_gpu_gets_triton_where_the_shape_allows_it(head_dim: int, page_size: int, want: str) -> None:
    assert choose_backend("auto", CUDA, head_dim=head_dim, page_size=page_size) == want


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
        choose_backend("triton", device, head_dim=head_dim, page_size=page_size)

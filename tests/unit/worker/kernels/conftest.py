"""Kernel tests run on a GPU where there is one, else under Triton's interpreter (asked for in tests/conftest.py)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch


def _obstacle() -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.cuda.is_available():
        return ""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "no GPU, and TRITON_INTERPRET is not 1"
    if importlib.metadata.version("triton").startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return f"triton 3.6 cannot interpret with numpy {np.__version__}: install what constraints.txt names"
    return ""


OBSTACLE = _obstacle()
if not torch.cuda.is_available():
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> pytest.CollectReport | None:
    """Skip the folder's modules, which import triton, where they cannot run."""
    if OBSTACLE and isinstance(collector, pytest.Module):
        return pytest.CollectReport(collector.nodeid, "skipped", (str(collector.path), 0, f"Skipped: {OBSTACLE}"), [])
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter computes with numpy, which warns of the NaNs and overflows that some tests are about."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def fresh_random_inputs() -> None:
    """New inputs every run; the seed is printed with a failure."""
    seed = int.from_bytes(os.urandom(4), "little")
    torch.manual_seed(seed)
    print(f"seed {seed}")


@pytest.fixture
def scaled_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 8-bit floats are multiplied as on a card that can, whatever the device and the dtype here."""
    monkeypatch.setattr(
        "services.worker.models.triton_ops.fits_scaled_product", lambda weight, _: weight.scales.shape[1] == 1
    )


@pytest.fixture
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's mixed programs from 8 tokens on: the interpreter takes as long for padding as for tokens."""
    monkeypatch.setattr("services.worker.mixed_program.SIZES", [8, 16, 32, 64, 128])

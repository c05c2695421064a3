"""FlashInfer's kernels at an engine's start: what is said when they cannot be had."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from services.worker.attention.backend import choose_backend
from services.worker.attention.flashinfer_modules import OUTPUT_LINES, Module, load_modules
from shared.errors import ConfigError
from shared.log import Log

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NVCC = Path("/somewhere/bin/nvcc")


@pytest.fixture
def log() -> Log:
    return Log(logging.getLogger("rhizome"), {})


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "says"),
    [
        (CPU, torch.bfloat16, 128, "needs a CUDA device"),
        (CUDA, torch.float32, 128, "computes in bfloat16 and float16, not float32"),
        (CUDA, torch.bfloat16, 96, "heads of 64, 128 and 256 elements, not 96"),
    ],
)
def test_flashinfer_by_name_says_why_it_cannot_run(
    device: torch.device, dtype: torch.dtype, head_dim: int, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_backend("flashinfer", device, dtype, head_dim=head_dim, page_size=16)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(ConfigError, match=r"flashinfer cannot be imported .*pip install 'rhizome\[flashinfer\]'"):
        choose_backend("flashinfer", CUDA, torch.bfloat16, head_dim=128, page_size=16)


def test_what_is_built_is_loaded_without_a_compiler(log: Log) -> None:
    loaded: list[str] = []
    load_modules([Module(name, True, lambda name=name: loaded.append(name)) for name in ("a", "b")], None, log)
    assert loaded == ["a", "b"]


def test_kernels_to_build_and_no_compiler_are_a_start_up_error(log: Log) -> None:
    loaded: list[str] = []
    modules = [Module(name, name == "a", lambda name=name: loaded.append(name)) for name in "abc"]
    with pytest.raises(ConfigError, match=r"2 of its kernels are not built \(b\) and there is no nvcc"):
        load_modules(modules, None, log)
    assert loaded == []


def test_a_failed_compilation_shows_the_end_of_the_compilers_output(log: Log) -> None:
    def fail() -> None:
        raise RuntimeError("\n".join(["Ninja build failed.", *(f"line {i}" for i in range(100)), "error: no memory"]))

    with pytest.raises(ConfigError) as fault:
        load_modules([Module("prefill", False, fail)], NVCC, log)
    shown = fault.value.message.splitlines()
    assert "prefill cannot be built" in shown[0]
    assert shown[-2:] == ["line 99", "error: no memory"]
    assert len(shown) == OUTPUT_LINES + 1

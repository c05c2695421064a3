"""Decode steps from recordings are those of the ordinary way, for every family and form of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.worker.recorded_decode import SIZES, RecordedDecode
from shared.messages.step import RowInit
from tests.unit.worker.driver import Driver, Extend, make_engine
from tests.unit.worker.quantization.checkpoints import plain_checkpoint, quantized_checkpoint

ROWS = 20


def steps(path: Path, *, recorded: bool, page_size: int) -> list[np.ndarray]:
    """Log probabilities of the likeliest tokens in decode steps of 1 to 20 rows of unequal length."""
    engine = make_engine(path, attention_backend="numba", max_running_requests=ROWS, page_size=page_size)
    assert isinstance(engine._decode_program, RecordedDecode)
    if not recorded:
        engine._decode_program = None
    driver, out = Driver(engine), []
    for row in range(ROWS):
        prompt = [3 + (row * 7 + i) % 250 for i in range(1 + row * 5 % 37)]
        driver.run([Extend(row, prompt)], new=[RowInit(row, temperature=0.0, return_logprob=True, top_logprobs_num=4)])
        rows = [(row - i) % ROWS for i in range(row + 1)]  # newest first: rows are in any order
        out.append(driver.run(decode=rows).top_logprobs)
        out.append(driver.run(decode=rows[:1]).top_logprobs)
    return out


def assert_alike(path: Path, page_size: int = 1) -> None:
    for recorded, ordinary in zip(
        steps(path, recorded=True, page_size=page_size), steps(path, recorded=False, page_size=page_size), strict=True
    ):
        np.testing.assert_allclose(recorded, ordinary, atol=2e-4)


@pytest.mark.parametrize(("family", "page_size"), [("llama-biased", 1), ("mistral-window", 16), ("qwen3", 1)])
def test_plain_weights(checkpoint: Callable[[str], tuple[Path, Any]], family: str, page_size: int) -> None:
    assert_alike(checkpoint(family)[0], page_size)


@pytest.mark.parametrize(
    ("model", "case"),
    [
        ("qwen2", "awq 32"),
        ("llama", "gptq act-order 32"),
        ("llama-tied", "gguf Q4_1"),
        ("llama", "gptq int8 zero points"),
    ],
)
def test_quantized_weights(tmp_path: Path, model: str, case: str) -> None:
    plain = plain_checkpoint(model, tmp_path / "plain")
    quantized_checkpoint(plain, case, tmp_path / "quantized", tmp_path / "meant")
    assert_alike(tmp_path / "quantized", page_size=16)


def test_experts_are_not_recorded_as_python_reads_who_goes_where(tmp_path: Path) -> None:
    engine = make_engine(plain_checkpoint("mixtral", tmp_path / "plain"), attention_backend="numba")
    assert engine._decode_program is None


def test_larger_batches_take_the_ordinary_way(checkpoint: Callable[[str], tuple[Path, Any]]) -> None:
    program = make_engine(checkpoint("qwen3")[0], attention_backend="numba")._decode_program
    assert program is not None
    assert program.fits(np.arange(SIZES[-1]))
    assert not program.fits(np.arange(SIZES[-1] + 1))

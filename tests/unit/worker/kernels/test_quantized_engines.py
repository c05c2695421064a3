"""Engines on kernels with quantized checkpoints compute what engines with the weights that these mean compute."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.worker.driver import Driver, make_engine
from tests.unit.worker.quantization.checkpoints import plain_checkpoint, quantized_checkpoint
from tests.unit.worker.ranks import Ranks
from tests.unit.worker.test_models import every_logprob, prompt
from tests.unit.worker.test_tensor_parallel import script

SMALL = {"dtype": "float32", "max_running_requests": 4, "max_total_tokens": 256, "max_prefill_tokens": 16}


@pytest.mark.parametrize(("model", "case"), [("mixtral", "awq 32"), ("mixtral", "compressed-tensors fp8 channel"),
                                             ("qwen3-moe", "gptq v1 64"), ("qwen3-moe", "fp8 block")])  # fmt: skip
def test_experts_stay_packed_and_compute_what_is_meant(
    tmp_path: Path, model: str, case: str, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    plain = plain_checkpoint(model, tmp_path / "plain")
    quantized_checkpoint(plain, case, tmp_path / "quantized", tmp_path / "meant")
    ids = prompt(9)
    with caplog.at_level(logging.WARNING, "rhizome"):
        engine = make_engine(tmp_path / "quantized", device=device.type, attention_backend="triton", **SMALL)
    ours = every_logprob(Driver(engine), ids, chunk=9)
    meant = make_engine(tmp_path / "meant", device=device.type, attention_backend="torch", **SMALL)
    wanted = every_logprob(Driver(meant), ids, chunk=9)
    # Two experts that are nearly as likely may change places at a position, so most positions count and not all.
    assert np.median(np.abs(ours - wanted).max(axis=1)) < 5e-3
    assert not any("were expanded" in record.message for record in caplog.records)


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs are tested in tests/gpu")
def test_ranks_share_packed_experts(tmp_path: Path) -> None:
    plain = plain_checkpoint("mixtral", tmp_path / "plain")
    quantized_checkpoint(plain, "awq 32", tmp_path / "quantized", tmp_path / "meant")
    plans, alone = script(tmp_path / "quantized")
    flags = {"attention_backend": "triton", "dtype": "float32"}
    with Ranks(tmp_path / "quantized", 2, **flags) as ranks:
        assert ranks.tokens(plans) == alone

"""Engines on kernels with quantized checkpoints compute what engines with the weights that these mean compute."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from services.worker.kernels.reference import experts as reference
from services.worker.models import triton_ops
from services.worker.models.expert_weights import ExpertWeights
from services.worker.models.linear import Linear
from services.worker.models.place import Place
from services.worker.models.triton_ops import TritonOps
from services.worker.quantization.rounded import Fp8Rows, unfilled_rows
from services.worker.quantization.scheme import choose_scheme
from services.worker.tensor_parallel import Alone, Shard
from shared.moe_config import MoeConfig
from tests.unit.worker.driver import Driver, make_engine
from tests.unit.worker.kernels.closeness import assert_close
from tests.unit.worker.quantization.checkpoints import plain_checkpoint, quantized_checkpoint
from tests.unit.worker.quantization.writers import CASES
from tests.unit.worker.test_models import every_logprob, prompt

SMALL = {"dtype": "float32", "max_running_requests": 4, "max_total_tokens": 256, "max_prefill_tokens": 16}


@pytest.mark.parametrize(("model", "case"), [("mixtral", "awq 32"), ("mixtral", "compressed-tensors fp8 channel"),
                                             ("qwen3-moe", "gptq v1 64"), ("qwen3-moe", "fp8 block")])  # fmt: skip
@pytest.mark.usefixtures("small_programs")
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


@pytest.mark.parametrize("model", ["llama", "mixtral"])
@pytest.mark.usefixtures("small_programs", "scaled_products")
def test_activations_that_are_rounded_where_they_are_made_change_no_bit(
    tmp_path: Path, model: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plain_checkpoint(model, tmp_path / "plain")
    quantized_checkpoint(plain, "compressed-tensors fp8 channel", tmp_path / "quantized", tmp_path / "meant")
    widths: set[int] = set()

    def counted(x: torch.Tensor, width: int) -> Fp8Rows:
        widths.add(width)
        return unfilled_rows(x, width)

    monkeypatch.setattr(triton_ops, "unfilled_rows", counted)
    flags = {"device": device.type, "attention_backend": "triton", **SMALL, "max_prefill_tokens": 32}
    at_once = every_logprob(Driver(make_engine(tmp_path / "quantized", **flags)), prompt(18), chunk=18)
    assert widths == ({128} if model == "mixtral" else {128, 256})
    monkeypatch.setattr(Linear, "rounds", lambda self, tokens: False)
    later = every_logprob(Driver(make_engine(tmp_path / "quantized", **flags)), prompt(18), chunk=18)
    assert np.array_equal(at_once, later)


@pytest.mark.parametrize("case", ["awq 32", "compressed-tensors int4 zero points -1", "fp8 block", "fp8 tensor"])
def test_the_outputs_of_ranks_that_share_packed_experts_add_up(case: str, device: torch.device) -> None:
    """Each has half of gate's and of up's outputs, one stack, and the same half of down's inputs."""
    hidden, width, num_experts, path = 64, 128, 3, "layers.0.mlp.experts."
    tensors: dict[str, torch.Tensor] = {}
    meant: dict[str, list[torch.Tensor]] = {"gate_proj": [], "up_proj": [], "down_proj": []}
    for index, (name, into) in itertools.product(range(num_experts), meant.items()):
        shape = (hidden, width) if name == "down_proj" else (width, hidden)
        written, weight = CASES[case].write(torch.randn(shape, dtype=torch.float64).numpy() * 0.1)
        tensors |= {f"{index}.{name}.{tensor}": value for tensor, value in written.items()}
        into.append(torch.from_numpy(weight))
    scheme = choose_scheme(dict(CASES[case].config), "auto")
    moe = MoeConfig(num_experts, 2, width, True, 0, frozenset({0}))
    shapes = {path + name: tuple(tensor.shape) for name, tensor in tensors.items()}
    x, logits = torch.randn(7, hidden), torch.randn(7, num_experts)
    total = torch.zeros(7, hidden, device=device)
    for rank in range(2):
        shard = Shard(rank, 2, slice(0, 1), slice(0, 1), slice(0, 1), [1, 1])
        place = Place(shard, Alone(), TritonOps(), torch.float32, device, scheme, shapes, path=path)
        weights = ExpertWeights(hidden, moe, place)
        for name, target in weights.targets().items():
            target.into.copy_(tensors[name][target.take])
        total += place.ops.run_experts(weights.read())(x.to(device), logits.to(device))
        assert not place.sizes.expanded
    gates, ups, downs = (torch.stack(one) for one in meant.values())
    routed = reference.route(logits.double(), 2, True)
    assert_close(total, reference.expert_mlp(x.double(), torch.cat((gates, ups), dim=1), downs, *routed), 1e-3)

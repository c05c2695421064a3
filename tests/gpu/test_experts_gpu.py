"""The experts of a layer inside a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from services.worker.models.experts import Experts
from services.worker.models.ops import TorchOps
from services.worker.quantization.weights import Fp8Weight, IntWeight, Weight, fp8_of
from tests.unit.worker.kernels.closeness import TOLERANCE, assert_close

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("tokens", [1, 4, 96])
def test_a_captured_layer_follows_new_tokens_to_their_experts(tokens: int) -> None:
    """Which experts are used, and how many tokens each gets, is different in every replay."""
    from services.worker.models.triton_ops import TritonOps

    num_experts, hidden, width = 24, 192, 80
    weights = [
        torch.randn(shape, device="cuda") for shape in ((num_experts, 2 * width, hidden), (num_experts, hidden, width))
    ]
    experts = Experts(*(w * w.shape[2] ** -0.5 for w in weights), top_k=4, renormalize=True)
    run, reference = TritonOps().run_experts(experts), TorchOps().run_experts(experts)
    x, logits = torch.randn(tokens, hidden, device="cuda"), torch.randn(tokens, num_experts, device="cuda")
    run(x, logits)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x, logits)
    for _ in range(4):
        x.normal_()
        logits.normal_(std=2.0)
        graph.replay()
        torch.testing.assert_close(out, reference(x, logits), rtol=1e-4, atol=1e-4)


def packed_weight(form: str, width: int, depth: int) -> IntWeight | Fp8Weight:
    """Random, of the size that keeps activations as large as they are."""
    if form == "fp8 by output":
        return fp8_of(torch.randn(width, depth, device="cuda") * depth**-0.5)
    group = {"int4": 128, "int4 in groups of 32": 32, "int8": 64, "fp8 by block": 128}[form]
    scales = ((torch.rand(width, depth // group, device="cuda") + 0.1) * depth**-0.5).half().float()
    if form == "fp8 by block":
        return Fp8Weight(fp8_of(torch.randn(width, depth, device="cuda")).codes, scales / 400)
    kind, low, high = (torch.int8, -128, 128) if form == "int8" else (torch.uint8, 0, 16)
    codes = torch.randint(low, high, (width, depth), device="cuda").to(kind)
    if form == "int8":
        return IntWeight(8, codes, scales / 64, None)
    scales = scales / 4
    return IntWeight(4, codes, scales, -scales * torch.randint(4, 12, scales.shape, device="cuda"))


FORMS = ["int4", "int4 in groups of 32", "int8", "fp8 by block", "fp8 by output"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_packed_experts_compute_what_their_weights_mean_for_every_size_of_batch(form: str, dtype: torch.dtype) -> None:
    """Every tile of the table; 8-bit floats with one scale an output have activations of 8 bits in the large ones."""
    from services.worker.kernels.reference import experts as reference
    from services.worker.models.triton_ops import TritonOps

    num_experts, hidden, width, top_k = 16, 512, 384, 4
    gate_up, down = (
        [packed_weight(form, *shape) for _ in range(num_experts)] for shape in ((2 * width, hidden), (hidden, width))
    )
    meant = [torch.stack([weight.expand() for weight in stack]) for stack in (gate_up, down)]
    experts = Experts(list[Weight](gate_up), list[Weight](down), top_k, True, dtype)
    run = TritonOps().run_experts(experts)
    assert not experts.sizes.expanded
    for tokens in (1, 4, 17, 40, 64, 300, 2000):
        x = torch.randn(tokens, hidden, device="cuda", dtype=dtype)
        logits = torch.randn(tokens, num_experts, device="cuda")
        want = reference.expert_mlp(x.double(), *meant, *reference.route(logits.double(), top_k, True))
        rounds = form == "fp8 by output" and dtype == torch.bfloat16 and tokens * top_k > 12 * num_experts
        assert_close(run(x, logits), want, 6e-2 if rounds else TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [1, 8, 300])
@pytest.mark.parametrize("form", ["int4", "fp8 by output"])
def test_a_captured_layer_of_packed_experts_follows_new_tokens(form: str, tokens: int) -> None:
    from services.worker.models.triton_ops import TritonOps

    num_experts, hidden, width = 24, 256, 128
    gate_up, down = (
        [packed_weight(form, *shape) for _ in range(num_experts)] for shape in ((2 * width, hidden), (hidden, width))
    )
    run = TritonOps().run_experts(Experts(list[Weight](gate_up), list[Weight](down), 4, True, torch.bfloat16))
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    logits = torch.randn(tokens, num_experts, device="cuda")
    run(x, logits)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x, logits)
    for _ in range(4):
        x.normal_()
        logits.normal_(std=2.0)
        graph.replay()
        assert torch.equal(out, run(x, logits))

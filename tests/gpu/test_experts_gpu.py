"""The experts of a layer inside a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from services.worker.models.experts import Experts
from services.worker.models.ops import TorchOps

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

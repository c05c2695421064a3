"""Logprobs of given tokens against fp64."""

from __future__ import annotations

import pytest
import torch

from services.worker.kernels.token_logprobs import token_logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab", "padded"), [(0, 10, 10), (1, 1, 8), (3, 5000, 5003), (2, 4096, 4096)])
def test_logprobs_are_those_of_the_log_softmax(
    rows: int, vocab: int, padded: int, dtype: torch.dtype, device: torch.device
) -> None:
    logits = (torch.randn(rows, padded, device=device) * 10).to(dtype)
    logits[:, vocab:] = 1e4  # padding of the head must not count
    tokens = torch.randint(0, vocab, (rows,), device=device)
    want = logits[:, :vocab].double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    got = token_logprobs(logits, tokens, vocab)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-5)

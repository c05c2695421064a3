"""Log-probability of given tokens (prompt logprobs), without a softmax of the size of the logits in memory.

Called by the worker for rows that ask for the logprobs of their prompt; sampled tokens get theirs from `sampling`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.device import INDEX_POINTERS

BLOCK = 4096


@triton.jit(do_not_specialize_on_alignment=INDEX_POINTERS)
def _token_logprobs_kernel(
    logits: tl.tensor,
    tokens: tl.tensor,
    logprobs: tl.tensor,
    logits_stride: tl.int64,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    peak = tl.full([BLOCK], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        inside = start + column < VOCAB
        value = tl.load(logits + row * logits_stride + start + column, mask=inside, other=float("-inf")).to(tl.float32)
        new_peak = tl.maximum(peak, value)
        total = total * tl.exp(peak - new_peak) + tl.exp(value - new_peak)
        peak = new_peak
    highest = tl.max(peak, axis=0)
    mass = tl.sum(total * tl.exp(peak - highest), axis=0)
    chosen = tl.load(logits + row * logits_stride + tl.load(tokens + row)).to(tl.float32)
    tl.store(logprobs + row, chosen - highest - tl.log(mass))


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, vocab_size: int | None = None) -> torch.Tensor:
    """Natural log-softmax of each row at its token.

    Args:
        logits: [T, V'] fp32, bf16 or fp16, last dimension contiguous.
        tokens: [T] int32 or int64 ids below V.
        vocab_size: V where the logits are padded to V'.

    Returns:
        [T] float32.
    """
    assert logits.stride(1) == 1
    logprobs = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    if logits.shape[0]:
        _token_logprobs_kernel[(logits.shape[0],)](
            logits, tokens, logprobs, logits.stride(0), VOCAB=vocab_size or logits.shape[1], BLOCK=BLOCK, num_warps=8
        )
    return logprobs

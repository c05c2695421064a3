"""Sampling state of all rows, on the device: what the sampling kernels read and advance.

A step names rows, nothing is gathered or copied per step. The worker writes a row when a request takes it (and its
mask slot when a grammar advances); `sample` itself counts the step, the token and the last token. One writer: the
worker's device thread.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl

TEMPERATURE = tl.constexpr(0)
"""0 = greedy; values in (0, 0.01) act as 0.01."""
TOP_P = tl.constexpr(1)
MIN_P = tl.constexpr(2)
REPETITION = tl.constexpr(3)
PRESENCE = tl.constexpr(4)
FREQUENCY = tl.constexpr(5)
FLOATS = tl.constexpr(8)

TOP_K = tl.constexpr(0)
"""Below 1 = off."""
STEP = tl.constexpr(1)
"""Tokens generated so far: position in the row's random stream."""
MIN_STEP = tl.constexpr(2)
"""Banned ids are banned while STEP is below this."""
COUNT_SLOT = tl.constexpr(3)
"""Row of `counts`; -1 = no penalties."""
BIAS_SLOT = tl.constexpr(4)
"""Row of `bias`; -1 = none."""
MASK_SLOT = tl.constexpr(5)
"""Row of `masks`; -1 = every token is allowed."""
NUM_BANNED = tl.constexpr(6)
LAST_TOKEN = tl.constexpr(7)
INTS = tl.constexpr(8)

MAX_BANNED = tl.constexpr(128)

IN_PROMPT = 1 << 30
"""Bit of a count: the token occurs in the prompt. The bits below count its occurrences in the output."""
SEEN_BITS = tl.constexpr(IN_PROMPT - 1)


class SamplingTable(NamedTuple):
    """Parameters and state of every row; a tuple, so that a kernel takes it as one argument.

    V is the vocabulary, S the rows; C, B and M are the slots of each bank.
    """

    floats: torch.Tensor
    """[S, 8] float32, columns above."""
    ints: torch.Tensor
    """[S, 8] int32, columns above."""
    seeds: torch.Tensor
    """[S] int64."""
    banned_ids: torch.Tensor
    """[S, 128] int32; the first NUM_BANNED count (EOS and stop ids until min_new_tokens)."""
    counts: torch.Tensor
    """[C, V] int32: occurrences in the output, plus IN_PROMPT."""
    bias: torch.Tensor
    """[B, V] float32 added to the logits."""
    masks: torch.Tensor
    """[M, ceil(V / 32)] int32, bit 1 = allowed, least significant first."""


def sampling_table(
    max_rows: int,
    vocab_size: int,
    device: torch.device,
    *,
    count_slots: int = 1,
    bias_slots: int = 1,
    mask_slots: int = 1,
) -> SamplingTable:
    """All rows greedy, nothing penalised, biased or masked."""
    floats = torch.zeros((max_rows, FLOATS.value), dtype=torch.float32, device=device)
    floats[:, [TOP_P.value, REPETITION.value]] = 1.0
    ints = torch.zeros((max_rows, INTS.value), dtype=torch.int32, device=device)
    ints[:, [TOP_K.value, COUNT_SLOT.value, BIAS_SLOT.value, MASK_SLOT.value]] = -1
    return SamplingTable(
        floats=floats,
        ints=ints,
        seeds=torch.zeros(max_rows, dtype=torch.int64, device=device),
        banned_ids=torch.full((max_rows, MAX_BANNED.value), -1, dtype=torch.int32, device=device),
        counts=torch.zeros((count_slots, vocab_size), dtype=torch.int32, device=device),
        bias=torch.zeros((bias_slots, vocab_size), dtype=torch.float32, device=device),
        masks=torch.full((mask_slots, -(-vocab_size // 32)), -1, dtype=torch.int32, device=device),
    )

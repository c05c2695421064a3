"""A tile of logits as the row is sampled from: penalties, bias, bans, mask, temperature. Used inside `sampling`
kernels.

Every kernel of a sampling recomputes it, so nothing of the size of the logits is written, and the raw logits stay for
the logprobs. The kernels are compiled without fused multiply-add so that all see the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from services.worker.kernels.sampling_table import (
    BIAS_SLOT,
    COUNT_SLOT,
    FLOATS,
    FREQUENCY,
    INTS,
    MASK_SLOT,
    MAX_BANNED,
    MIN_P,
    MIN_STEP,
    NUM_BANNED,
    PRESENCE,
    REPETITION,
    SEEN_BITS,
    STEP,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SamplingTable,
)

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def is_filtered(table: SamplingTable, state: tl.tensor, VOCAB: tl.constexpr) -> tl.tensor:
    """The row is sampled, and not from its whole distribution."""
    top_k = tl.load(table.ints + state * INTS + TOP_K)
    limited = ((top_k > 0) & (top_k < VOCAB)) | (tl.load(table.floats + state * FLOATS + TOP_P) < 1.0)
    limited = limited | (tl.load(table.floats + state * FLOATS + MIN_P) > 0.0)
    return limited & (tl.load(table.floats + state * FLOATS + TEMPERATURE) > 0.0)


@triton.jit
def raw_logits(logits_row: tl.tensor, token: tl.tensor, VOCAB: tl.constexpr) -> tl.tensor:
    """The model's logits in fp32; -inf outside the vocabulary and for NaN, which is never drawn."""
    value = tl.load(logits_row + token, mask=token < VOCAB, other=NOTHING).to(tl.float32)
    return tl.where(value == value, value, NOTHING)


@triton.jit
def adjusted(
    raw: tl.tensor, token: tl.tensor, state: tl.tensor, table: SamplingTable, VOCAB: tl.constexpr
) -> tl.tensor:
    """What `raw` becomes before the softmax; -inf = cannot be drawn.

    Args:
        raw, token: a tile of `raw_logits` and its ids.
        state: int64 row of the table.
    """
    floats = table.floats + state * FLOATS
    ints = table.ints + state * INTS
    inside = token < VOCAB
    value = raw
    count_slot = tl.load(ints + COUNT_SLOT).to(tl.int64)
    if count_slot >= 0:
        seen = tl.load(table.counts + count_slot * VOCAB + token, mask=inside, other=0)
        repetition = tl.load(floats + REPETITION)
        value = tl.where(seen != 0, tl.where(value > 0, value / repetition, value * repetition), value)
        generated = (seen & SEEN_BITS).to(tl.float32)
        value -= tl.load(floats + FREQUENCY) * generated
        value -= tl.where(generated > 0, tl.load(floats + PRESENCE), 0.0)
    bias_slot = tl.load(ints + BIAS_SLOT).to(tl.int64)
    if bias_slot >= 0:
        value += tl.load(table.bias + bias_slot * VOCAB + token, mask=inside, other=0.0)
    mask_slot = tl.load(ints + MASK_SLOT).to(tl.int64)
    if mask_slot >= 0:
        word = tl.load(table.masks + mask_slot * ((VOCAB + 31) // 32) + token // 32, mask=inside, other=0)
        value = tl.where(((word >> (token % 32)) & 1) != 0, value, NOTHING)
    if tl.load(ints + STEP) < tl.load(ints + MIN_STEP):
        for i in range(tl.load(ints + NUM_BANNED)):
            value = tl.where(token == tl.load(table.banned_ids + state * MAX_BANNED + i), NOTHING, value)
    temperature = tl.load(floats + TEMPERATURE)
    return value * tl.where(temperature > 0.0, 1.0 / tl.maximum(temperature, 0.01), 1.0)

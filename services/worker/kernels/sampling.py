"""Sampling on the device: penalties, bias, masks, temperature, top-k, top-p, min-p, one draw and its logprob per row.

What is drawn (`reference.sampling` says it in torch): logits get the repetition penalty, the frequency and presence
penalties, the bias, the bans and the mask, then the temperature. Tokens are ordered by descending probability, equal
ones by ascending id; the first top_k are kept; of those the shortest prefix whose mass reaches top_p of theirs; of
those the ones of at least min_p times the largest probability. One uniform, a function of (seed, step) alone, picks a
token by inverse CDF over the kept ones in ascending id. So a row's token depends on nothing else in the batch.

Three launches, nothing sorted, no host synchronization: `candidates` narrows the vocabulary, and one program per row
searches the exact threshold among the candidates, draws, and advances the row's state. Called by the worker's
sampler.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.adjusted_logits import NOTHING, adjusted, is_filtered, raw_logits
from services.worker.kernels.candidates import LOWEST, gather_candidates_kernel, slice_stats_kernel
from services.worker.kernels.device import INDEX_POINTERS
from services.worker.kernels.sampling_table import (
    COUNT_SLOT,
    FLOATS,
    INTS,
    LAST_TOKEN,
    MIN_P,
    STEP,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SamplingTable,
)
from services.worker.kernels.sampling_workspace import CANDIDATES, SLICE, SamplingWorkspace

TILE = 2048
WAYS = tl.constexpr(8)
MAX_ROUNDS = tl.constexpr(64)


@triton.jit
def uniform(seed: tl.tensor, step: tl.tensor) -> tl.tensor:
    """24 bits in [0, 1): first word of Philox 4x32-10, key `seed` (int64), counter (step, 0, 0, 0)."""
    counter = step.to(tl.uint32)
    zero = counter * 0
    word, _, _, _ = tl.philox(seed, counter, zero, zero, zero)
    return (word >> 8).to(tl.float32) * (1.0 / (1 << 24))


@triton.jit
def _tile_values(
    start: tl.tensor,
    stop: tl.tensor,
    compact: tl.tensor,
    values: tl.tensor,
    logits_row: tl.tensor,
    state: tl.tensor,
    table: SamplingTable,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """A tile of what the row is drawn from: its candidates or the vocabulary; -inf from `stop` on."""
    index = start + tl.arange(0, TILE)
    if compact:
        value = tl.load(values + index, mask=index < stop, other=NOTHING)
    else:
        value = adjusted(raw_logits(logits_row, index, VOCAB), index, state, table, VOCAB)
        value = tl.where(index < stop, value, NOTHING)
    return value


@triton.jit
def _threshold(
    goal: tl.tensor,
    low: tl.tensor,
    peak: tl.tensor,
    stop: tl.tensor,
    compact: tl.tensor,
    values: tl.tensor,
    logits_row: tl.tensor,
    state: tl.tensor,
    table: SamplingTable,
    MASS: tl.constexpr,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The smallest value present above `low` such that what lies strictly above it amounts to less than `goal`.

    An amount is a count, or with MASS a sum of exp(value - peak). Every pass cuts the bracket (low, high], which holds
    the answer, at eight places and shrinks it to values present in it, until one value is left.
    """
    high = peak
    cut = (tl.arange(0, WAYS) + 1).to(tl.float32) / (WAYS + 1)
    rounds = 0
    while rounds < MAX_ROUNDS:
        level = low + (high - low) * cut
        amount = tl.zeros([WAYS], tl.float32)
        smallest = -LOWEST
        largest = LOWEST + 0.0
        for start in range(0, stop, TILE):
            value = _tile_values(start, stop, compact, values, logits_row, state, table, VOCAB, TILE)
            if MASS:
                weight = tl.exp(value - peak)
            else:
                weight = tl.full([TILE], 1.0, tl.float32)
            amount += tl.sum(tl.where(value[None, :] > level[:, None], weight[None, :], 0.0), axis=1)
            bracketed = (value > low) & (value <= high)
            smallest = tl.minimum(smallest, tl.min(tl.where(bracketed, value, -LOWEST), axis=0))
            largest = tl.maximum(largest, tl.max(tl.where(bracketed, value, LOWEST), axis=0))
        rounds += 1
        high = tl.min(tl.where(amount < goal, level, largest), axis=0)
        low = tl.maximum(low, tl.max(tl.where((amount >= goal) & (level < high), level, LOWEST), axis=0))
        low = tl.maximum(low, smallest - tl.abs(smallest) * 2.0e-7 - 1.0e-30)  # just under the smallest
        high = tl.minimum(largest, tl.maximum(high, smallest))
        if smallest >= largest:
            rounds = MAX_ROUNDS
    return high


@triton.jit
def _amounts(
    bound: tl.tensor,
    floor: tl.tensor,
    peak: tl.tensor,
    stop: tl.tensor,
    compact: tl.tensor,
    values: tl.tensor,
    logits_row: tl.tensor,
    state: tl.tensor,
    table: SamplingTable,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Count above `bound`, mass above it of values from `floor` on, and count at it."""
    count = 0
    ties = 0
    mass = 0.0
    for start in range(0, stop, TILE):
        value = _tile_values(start, stop, compact, values, logits_row, state, table, VOCAB, TILE)
        above = value > bound
        count += tl.sum(above.to(tl.int32), axis=0)
        ties += tl.sum((value == bound).to(tl.int32), axis=0)
        mass += tl.sum(tl.where(above & (value >= floor), tl.exp(value - peak), 0.0), axis=0)
    return count, mass, ties


@triton.jit
def _draw(
    target: tl.tensor,
    begin: tl.tensor,
    bound: tl.tensor,
    quota: tl.tensor,
    floor: tl.tensor,
    peak: tl.tensor,
    stop: tl.tensor,
    compact: tl.tensor,
    values: tl.tensor,
    logits_row: tl.tensor,
    state: tl.tensor,
    table: SamplingTable,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Index of the first kept value at which the running mass passes `target`; the last kept one if rounding hides it.

    Kept: values above `bound`, the first `quota` equal to it, none under `floor`. -1 = nothing is kept.
    """
    index_drawn = -1
    last = -1
    ties = 0
    running = 0.0
    for start in range(begin, stop, TILE):
        index = start + tl.arange(0, TILE)
        value = _tile_values(start, stop, compact, values, logits_row, state, table, VOCAB, TILE)
        kept = value > bound
        tie = (value == bound).to(tl.int32)
        tile_ties = tl.sum(tie, axis=0)
        if (tile_ties > 0) & (ties < quota):
            kept = kept | ((tie > 0) & (ties + tl.cumsum(tie, axis=0) <= quota))
        ties += tile_ties
        kept = kept & (value >= floor)
        weight = tl.where(kept, tl.exp(value - peak), 0.0)
        tile_mass = tl.sum(weight, axis=0)
        if (index_drawn < 0) & (running + tile_mass > target):
            passed = kept & (running + tl.cumsum(weight, axis=0) > target)
            first = tl.min(tl.where(passed, index, VOCAB), axis=0)
            index_drawn = tl.where(first < VOCAB, first, -1)
        running += tile_mass
        last = tl.maximum(last, tl.max(tl.where(kept, index, -1), axis=0))
    return tl.where(index_drawn >= 0, index_drawn, last)


@triton.jit(do_not_specialize_on_alignment=INDEX_POINTERS)
def _choose_kernel(
    logits: tl.tensor,
    rows: tl.tensor,
    table: SamplingTable,
    work: SamplingWorkspace,
    tokens: tl.tensor,
    logprobs: tl.tensor,
    logits_stride: tl.int64,
    VOCAB: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE: tl.constexpr,
    SLICE_BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(rows + row).to(tl.int64)
    if state < 0:
        return
    logits_row = logits + row * logits_stride
    values = work.candidate_values + row * CANDIDATES
    ints = table.ints + state * INTS
    piece = tl.arange(0, SLICE_BLOCK)
    real = piece < SLICES
    at = row * SLICES + piece
    piece_peak = tl.load(work.peaks + at, mask=real, other=LOWEST)
    peak = tl.max(piece_peak, axis=0)
    best = tl.load(work.argmaxes + at, mask=real, other=VOCAB)
    token = tl.min(tl.where(piece_peak == peak, best, VOCAB), axis=0)
    step = tl.load(ints + STEP)
    if (tl.load(table.floats + state * FLOATS + TEMPERATURE) > 0.0) & (peak > LOWEST):
        masses = tl.load(work.sums + at, mask=real, other=0.0) * tl.exp(piece_peak - peak)
        mass = tl.sum(masses, axis=0)
        begin = 0
        stop = VOCAB
        compact = False
        bound = LOWEST + 0.0
        floor = LOWEST + 0.0
        quota = 0
        target = uniform(tl.load(table.seeds + state), step)
        if is_filtered(table, state, VOCAB):
            found = tl.load(work.num_candidates + row)
            compact = found >= 0
            stop = tl.where(compact, found, VOCAB)
            low = tl.load(work.search_lows + row)
            top_k = tl.load(ints + TOP_K)
            top_p = tl.load(table.floats + state * FLOATS + TOP_P)
            min_p = tl.load(table.floats + state * FLOATS + MIN_P)
            if (top_k > 0) & (top_k < VOCAB):
                bound = _threshold(
                    top_k.to(tl.float32), low, peak, stop, compact, values, logits_row, state, table, False, VOCAB, TILE
                )
                count, mass, ties = _amounts(
                    bound, LOWEST, peak, stop, compact, values, logits_row, state, table, VOCAB, TILE
                )
                quota = tl.minimum(top_k - count, ties)
                mass += quota * tl.exp(bound - peak)
                low = bound - tl.abs(bound) * 2.0e-7 - 1.0e-30
            if top_p < 1.0:
                goal = top_p * mass
                nucleus = _threshold(
                    goal, low, peak, stop, compact, values, logits_row, state, table, True, VOCAB, TILE
                )
                count, mass, ties = _amounts(
                    nucleus, LOWEST, peak, stop, compact, values, logits_row, state, table, VOCAB, TILE
                )
                needed = tl.ceil((goal - mass) / tl.exp(nucleus - peak)).to(tl.int32)
                ties = tl.where(nucleus == bound, quota, ties)  # top_k may have kept fewer of them
                quota = tl.minimum(tl.maximum(needed, 1), ties)
                bound = nucleus
            if min_p > 0.0:
                floor = peak + tl.log(tl.maximum(min_p, 1.0e-30))
            count, mass, ties = _amounts(
                bound, floor, peak, stop, compact, values, logits_row, state, table, VOCAB, TILE
            )
            mass += tl.where(bound >= floor, quota * tl.exp(bound - peak), 0.0)
            target *= mass
        else:
            target *= mass
            passed = (tl.cumsum(masses, axis=0) <= target) & real
            piece_drawn = tl.minimum(
                tl.sum(passed.to(tl.int32), axis=0), tl.max(tl.where(masses > 0.0, piece, 0), axis=0)
            )
            target -= tl.sum(tl.where(piece < piece_drawn, masses, 0.0), axis=0)
            begin = piece_drawn * SLICE
            stop = tl.minimum(begin + SLICE, VOCAB)
        drawn = _draw(
            target, begin, bound, quota, floor, peak, stop, compact, values, logits_row, state, table, VOCAB, TILE
        )
        if drawn >= 0:
            token = drawn
            if compact:
                token = tl.load(work.candidate_ids + row * CANDIDATES + drawn)
    token = tl.where(token < VOCAB, token, 0)
    raw_peak = tl.load(work.raw_peaks + at, mask=real, other=LOWEST)
    highest = tl.max(raw_peak, axis=0)
    raw_mass = tl.sum(tl.load(work.raw_sums + at, mask=real, other=0.0) * tl.exp(raw_peak - highest), axis=0)
    tl.store(logprobs + row, tl.load(logits_row + token).to(tl.float32) - highest - tl.log(raw_mass))
    tl.store(tokens + row, token)
    tl.store(ints + LAST_TOKEN, token)
    tl.store(ints + STEP, step + 1)
    count_slot = tl.load(ints + COUNT_SLOT).to(tl.int64)
    if count_slot >= 0:
        counted = table.counts + count_slot * VOCAB + token
        tl.store(counted, tl.load(counted) + 1)


def sample(
    logits: torch.Tensor,
    rows: torch.Tensor,
    table: SamplingTable,
    workspace: SamplingWorkspace,
    tokens: torch.Tensor,
    logprobs: torch.Tensor,
    *,
    filtered: bool = True,
) -> None:
    """Draw one token for every row and advance the rows' state (step, last token, counts).

    Args:
        logits: [R, V'] fp32, bf16 or fp16, V' >= V; what lies past the vocabulary is never drawn. Not changed.
        rows: [R] int32 row of `table` of each batch row, no row twice; negative = padding, nothing is written.
        table: state of all rows; V is the width of its `counts`.
        workspace: of at least R rows.
        tokens: [R] int32, written. A row whose every token is masked gives 0.
        logprobs: [R] float32, written: log-softmax of the model's own logits at the token.
        filtered: False promises that no row of the batch has top_k, top_p or min_p, and spares a launch.
    """
    num_rows, vocab_size = logits.shape[0], table.counts.shape[1]
    assert logits.stride(1) == 1
    assert logits.shape[1] >= vocab_size
    assert num_rows <= workspace.peaks.shape[0]
    if num_rows == 0:
        return
    slices = triton.cdiv(vocab_size, SLICE)
    shape = {"VOCAB": vocab_size, "SLICES": slices, "SLICE": SLICE, "enable_fp_fusion": False}
    blocks = {"SLICE_BLOCK": triton.next_power_of_2(slices), "CANDIDATES": CANDIDATES}
    slice_stats_kernel[(num_rows, slices)](logits, rows, table, workspace, logits.stride(0), **shape, num_warps=4)
    if filtered:
        gather_candidates_kernel[(num_rows, slices)](
            logits, rows, table, workspace, logits.stride(0), **shape, **blocks, num_warps=4
        )
    _choose_kernel[(num_rows,)](
        logits, rows, table, workspace, tokens, logprobs, logits.stride(0), **shape, **blocks, TILE=TILE, num_warps=8
    )

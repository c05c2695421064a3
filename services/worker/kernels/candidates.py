"""First two launches of a sampling: statistics of the vocabulary's slices, then the candidates of each filtered row.

Slices report count and mass above eight levels under their own peak. Levels lie on one fixed grid, LEVEL_GAP apart,
so those of all slices add up; the highest level that surely holds the kept set names the candidates, which each slice
writes to its own place, in ascending id. Used by `sampling`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from services.worker.kernels.adjusted_logits import adjusted, is_filtered, raw_logits
from services.worker.kernels.device import INDEX_POINTERS
from services.worker.kernels.sampling_table import FLOATS, INTS, MIN_P, TOP_K, TOP_P, SamplingTable
from services.worker.kernels.sampling_workspace import NUM_LEVELS, SamplingWorkspace

LEVELS = tl.constexpr(NUM_LEVELS)
LEVEL_GAP = tl.constexpr(2.0)
LOWEST = tl.constexpr(-3.0e38)
"""Under every finite logit; stands for -inf where a difference must not become NaN."""


@triton.jit(do_not_specialize_on_alignment=INDEX_POINTERS)
def slice_stats_kernel(
    logits: tl.tensor,
    rows: tl.tensor,
    table: SamplingTable,
    work: SamplingWorkspace,
    logits_stride: tl.int64,
    VOCAB: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE: tl.constexpr,
) -> None:
    """Program (row, slice)."""
    row = tl.program_id(0).to(tl.int64)
    state = tl.load(rows + row).to(tl.int64)
    if state < 0:
        return
    token = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    raw = raw_logits(logits + row * logits_stride, token, VOCAB)
    value = adjusted(raw, token, state, table, VOCAB)
    at = row * SLICES + tl.program_id(1)
    raw_peak = tl.maximum(tl.max(raw, axis=0), LOWEST)
    tl.store(work.raw_peaks + at, raw_peak)
    tl.store(work.raw_sums + at, tl.sum(tl.exp(raw - raw_peak), axis=0))
    peak = tl.maximum(tl.max(value, axis=0), LOWEST)
    weight = tl.exp(value - peak)
    tl.store(work.peaks + at, peak)
    tl.store(work.sums + at, tl.sum(weight, axis=0))
    tl.store(work.argmaxes + at, tl.min(tl.where(value == peak, token, VOCAB), axis=0))
    if is_filtered(table, state, VOCAB):
        top = tl.floor(peak / LEVEL_GAP)
        for level in tl.static_range(LEVELS):
            above = value >= (top - level) * LEVEL_GAP
            tl.store(work.level_masses + at * LEVELS + level, tl.sum(tl.where(above, weight, 0.0), axis=0))
            tl.store(work.level_counts + at * LEVELS + level, tl.sum(above.to(tl.int32), axis=0))


@triton.jit(do_not_specialize_on_alignment=INDEX_POINTERS)
def gather_candidates_kernel(
    logits: tl.tensor,
    rows: tl.tensor,
    table: SamplingTable,
    work: SamplingWorkspace,
    logits_stride: tl.int64,
    VOCAB: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE: tl.constexpr,
    SLICE_BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
) -> None:
    """Program (row, slice)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    state = tl.load(rows + row).to(tl.int64)
    if state < 0:
        return
    if not is_filtered(table, state, VOCAB):
        return
    piece = tl.arange(0, SLICE_BLOCK)
    real = piece < SLICES
    at = row * SLICES + piece
    piece_peak = tl.load(work.peaks + at, mask=real, other=LOWEST)
    peak = tl.max(piece_peak, axis=0)
    fade = tl.exp(piece_peak - peak)
    mass = tl.sum(tl.load(work.sums + at, mask=real, other=0.0) * fade, axis=0)

    # Level i of the row is level i - shift of a slice whose own peak lies `shift` gaps lower.
    top = tl.floor(peak / LEVEL_GAP)
    shift = tl.minimum(top - tl.floor(piece_peak / LEVEL_GAP), 2.0 * LEVELS).to(tl.int32)
    level = tl.arange(0, LEVELS)
    own_level = level[None, :] - shift[:, None]
    known = real[:, None] & (own_level >= 0)
    level_at = at[:, None] * LEVELS + own_level
    counts = tl.load(work.level_counts + level_at, mask=known, other=0)
    masses = tl.load(work.level_masses + level_at, mask=known, other=0.0) * fade[:, None]
    count_above = tl.sum(counts, axis=0)
    level_value = (top - level.to(tl.float32)) * LEVEL_GAP

    top_k = tl.load(table.ints + state * INTS + TOP_K)
    top_p = tl.load(table.floats + state * FLOATS + TOP_P)
    min_p = tl.load(table.floats + state * FLOATS + MIN_P)
    k_limits = (top_k > 0) & (top_k < VOCAB)
    floor = tl.where(min_p > 0.0, peak + tl.log(tl.maximum(min_p, 1.0e-30)), LOWEST)
    goal = tl.where(top_p < 1.0, top_p * mass, -LOWEST)
    # top_p is a share of the mass of the top_k tokens: with both, all of those must be candidates.
    floor_with_k = tl.where(top_p < 1.0, LOWEST, floor)
    with_k = (count_above >= top_k) | (level_value <= floor_with_k)
    without_k = (tl.sum(masses, axis=0) >= goal) | (level_value <= floor)
    enough = tl.where(k_limits, with_k, without_k)
    chosen = tl.min(tl.where(enough, level, LEVELS), axis=0)
    counts = tl.where((level == chosen)[None, :], counts, 0)
    found = tl.sum(tl.sum(counts, axis=1), axis=0)
    fits = (chosen < LEVELS) & (found <= CANDIDATES)
    bound = (top - chosen) * LEVEL_GAP
    if part == 0:
        # A token less likely than (1 - top_p) / VOCAB is in no nucleus: all such together miss 1 - top_p.
        rest = tl.where(top_p < 1.0, peak + tl.log(tl.maximum((1.0 - top_p) * mass / VOCAB, 1.0e-30)), floor)
        low = tl.where(fits, bound, tl.where(k_limits, LOWEST, tl.maximum(rest, floor)))
        tl.store(work.search_lows + row, tl.maximum(low - 1.0 - tl.abs(low) * 1.0e-6, LOWEST))
        tl.store(work.num_candidates + row, tl.where(fits, found, -1))
    own = tl.sum(tl.sum(tl.where((piece == part)[:, None], counts, 0), axis=1), axis=0)
    if fits & (own > 0):
        before = tl.sum(tl.sum(tl.where((piece < part)[:, None], counts, 0), axis=1), axis=0)
        token = part * SLICE + tl.arange(0, SLICE)
        value = adjusted(raw_logits(logits + row * logits_stride, token, VOCAB), token, state, table, VOCAB)
        above = value >= bound
        place = before + tl.cumsum(above.to(tl.int32), axis=0) - 1
        written = above & (place < CANDIDATES)
        tl.store(work.candidate_values + row * CANDIDATES + place, value, mask=written)
        tl.store(work.candidate_ids + row * CANDIDATES + place, token, mask=written)

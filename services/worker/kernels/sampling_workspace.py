"""What the launches of one sampling leave for each other. Used by `sampling` alone; lives as long as the engine."""

from __future__ import annotations

from typing import NamedTuple

import torch

SLICE = 2048
"""Tokens of the vocabulary per program of the first two launches."""
CANDIDATES = 8192
"""Most tokens a row's search takes from the candidate buffer; a flatter row is searched in full."""
NUM_LEVELS = 8


class SamplingWorkspace(NamedTuple):
    """Per batch row and slice, R rows and N slices; a tuple, so that a kernel takes it as one argument."""

    raw_peaks: torch.Tensor
    """[R, N] float32: largest raw logit."""
    raw_sums: torch.Tensor
    """[R, N] float32: sum of exp(raw - raw_peak)."""
    peaks: torch.Tensor
    """[R, N] float32: largest adjusted logit."""
    sums: torch.Tensor
    """[R, N] float32: sum of exp(adjusted - peak)."""
    argmaxes: torch.Tensor
    """[R, N] int32: first token at the peak; the vocabulary's size where none is allowed."""
    level_masses: torch.Tensor
    """[R, N, 8] float32: sum of exp(adjusted - peak) at and above each level under the slice's peak."""
    level_counts: torch.Tensor
    """[R, N, 8] int32: tokens at and above each level."""
    num_candidates: torch.Tensor
    """[R] int32; -1 = the buffer does not hold them: search the vocabulary."""
    search_lows: torch.Tensor
    """[R] float32: a value under every kept one."""
    candidate_values: torch.Tensor
    """[R, CANDIDATES] float32 adjusted logits, in ascending id."""
    candidate_ids: torch.Tensor
    """[R, CANDIDATES] int32."""


def sampling_workspace(max_rows: int, vocab_size: int, device: torch.device) -> SamplingWorkspace:
    """Allocate for batches of up to `max_rows`; about 70 kB a row."""
    slices = -(-vocab_size // SLICE)

    def floats(*shape: int) -> torch.Tensor:
        return torch.empty((max_rows, *shape), dtype=torch.float32, device=device)

    def ints(*shape: int) -> torch.Tensor:
        return torch.empty((max_rows, *shape), dtype=torch.int32, device=device)

    return SamplingWorkspace(
        raw_peaks=floats(slices),
        raw_sums=floats(slices),
        peaks=floats(slices),
        sums=floats(slices),
        argmaxes=ints(slices),
        level_masses=floats(slices, NUM_LEVELS),
        level_counts=ints(slices, NUM_LEVELS),
        num_candidates=ints(),
        search_lows=floats(),
        candidate_values=floats(CANDIDATES),
        candidate_ids=ints(CANDIDATES),
    )

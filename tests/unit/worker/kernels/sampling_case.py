"""Puts reference rows into a sampling table and judges a draw by the reference's distribution."""

from __future__ import annotations

import dataclasses

import torch

from services.worker.kernels import sampling_table as columns
from services.worker.kernels.reference.sampling import RowParams, adjusted_logits, kept_distribution, uniform
from services.worker.kernels.sampling_table import SamplingTable, sampling_table


def table_of(
    params: list[RowParams], rows: torch.Tensor, max_rows: int, vocab: int, device: torch.device
) -> SamplingTable:
    """A table whose row rows[i] holds params[i]; banks get one slot per row that needs one."""
    table = sampling_table(
        max_rows, vocab, device, count_slots=len(params) + 1, bias_slots=len(params) + 1, mask_slots=len(params) + 1
    )
    for i, row in enumerate(params):
        write_row(table, int(rows[i]), i, row)
    return table


def write_row(table: SamplingTable, state: int, slot: int, row: RowParams) -> None:
    """One row, with the bank slots `slot` where it has penalties, a bias or a mask."""
    device = table.ints.device
    table.floats[state, :6] = torch.tensor(
        [row.temperature, row.top_p, row.min_p, row.repetition, row.presence, row.frequency], device=device
    )
    table.seeds[state] = row.seed
    ints = table.ints[state]
    ints[columns.TOP_K.value] = row.top_k
    ints[columns.STEP.value] = row.step
    if row.repetition != 1 or row.presence or row.frequency:
        ints[columns.COUNT_SLOT.value] = slot
        for token in row.prompt_ids:
            table.counts[slot, token] |= columns.IN_PROMPT
        for token in row.output_ids:
            table.counts[slot, token] += 1
    if row.bias:
        ints[columns.BIAS_SLOT.value] = slot
        for token, amount in row.bias.items():
            table.bias[slot, token] = amount
    if row.allowed is not None:
        ints[columns.MASK_SLOT.value] = slot
        table.masks[slot] = packed(row.allowed).to(device)
    if row.banned_ids:
        ints[columns.MIN_STEP.value] = row.step + 1
        ints[columns.NUM_BANNED.value] = len(row.banned_ids)
        table.banned_ids[state, : len(row.banned_ids)] = torch.tensor(row.banned_ids, device=device)


def packed(allowed: torch.Tensor) -> torch.Tensor:
    """[V] bool -> [ceil(V / 32)] int32, least significant bit first."""
    words = torch.zeros(-(-allowed.numel() // 32) * 32, dtype=torch.int64)
    words[: allowed.numel()] = allowed.cpu()
    value = (words.view(-1, 32) << torch.arange(32)).sum(1)
    return torch.where(value >= 1 << 31, value - (1 << 32), value).to(torch.int32)


def assert_drawn(token: int, logits: torch.Tensor, row: RowParams, slack: float = 3e-5) -> None:
    """The token is what the reference draws, up to fp32 rounding of the running mass and of the kept set's border."""
    if row.temperature <= 0:
        best = int(adjusted_logits(logits, row).argmax())
        assert token == best, f"greedy drew {token}, not {best}"
        return
    point = uniform(row.seed, row.step)
    covered = []
    for nudge in (0.0, 2e-6, -2e-6):  # a border that falls on a token exactly may go either way
        near = dataclasses.replace(row, top_p=row.top_p * (1 + nudge), min_p=row.min_p * (1 - nudge))
        kept = kept_distribution(logits, near)
        end = float(kept[: token + 1].sum())
        covered.append((end - float(kept[token]), end, float(kept[token])))
    drawn = any(mass > 0 and begin - slack <= point <= end + slack for begin, end, mass in covered)
    assert drawn, f"{token} covers {covered[0]}, the uniform is {point}: {row}"

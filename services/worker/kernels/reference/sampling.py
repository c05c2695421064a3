"""Reference of sampling: one row at a time in fp64, by a stable sort."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class RowParams:
    """Parameters of one row, as in the sampling table."""

    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seed: int = 0
    step: int = 0
    output_ids: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    bias: dict[int, float] = field(default_factory=dict)
    banned_ids: list[int] = field(default_factory=list)
    allowed: torch.Tensor | None = None
    """[V] bool."""


def adjusted_logits(logits: torch.Tensor, row: RowParams) -> torch.Tensor:
    """[V] fp64 -> what the softmax sees."""
    value = logits.double().nan_to_num(nan=float("-inf"), neginf=float("-inf"))
    generated = torch.zeros_like(value)
    for token in row.output_ids:
        generated[token] += 1
    seen = generated > 0
    seen[row.prompt_ids] = True
    value = torch.where(seen, torch.where(value > 0, value / row.repetition, value * row.repetition), value)
    value = value - row.frequency * generated - row.presence * (generated > 0)
    for token, amount in row.bias.items():
        value[token] += amount
    if row.banned_ids:
        value[row.banned_ids] = float("-inf")
    if row.allowed is not None:
        value[~row.allowed] = float("-inf")
    return value / max(row.temperature, 0.01) if row.temperature > 0 else value


def kept_distribution(logits: torch.Tensor, row: RowParams) -> torch.Tensor:
    """[V] fp64 probabilities of the kept tokens, renormalised; zero elsewhere."""
    value = adjusted_logits(logits, row)
    probability = value.softmax(-1)
    order = torch.sort(probability, descending=True, stable=True).indices
    ranked = probability[order].clone()
    if 0 < row.top_k < ranked.numel():
        ranked[row.top_k :] = 0
    if row.top_p < 1:
        ranked = ranked / ranked.sum()
        before = ranked.cumsum(0) - ranked
        ranked[before >= row.top_p] = 0
    ranked[ranked < row.min_p * ranked[0]] = 0
    kept = torch.zeros_like(probability)
    kept[order] = ranked
    return kept / kept.sum()


def uniform(seed: int, step: int) -> float:
    """24 bits in [0, 1): first word of Philox 4x32-10 (Salmon et al. 2011), key `seed`, counter (step, 0, 0, 0)."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = step & mask, 0, 0, 0
    k0, k1 = seed & mask, (seed >> 32) & mask
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return (c0 >> 8) / (1 << 24)


def draw(logits: torch.Tensor, row: RowParams) -> int:
    """The token drawn; exact arithmetic may differ from fp32 where the uniform falls on a boundary."""
    if row.temperature <= 0:
        return int(adjusted_logits(logits, row).argmax())
    passed = kept_distribution(logits, row).cumsum(0) > uniform(row.seed, row.step)
    return int(passed.to(torch.int8).argmax())

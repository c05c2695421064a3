"""Mixture of experts, first half: which experts a token goes to, and which tokens an expert gets.

Tokens are not moved: the grouped products gather them through a list of (token, choice) pairs ordered by expert, in
which every expert's share is padded to whole tiles. Order within an expert is by pair, so results do not vary between
runs. Called by the MoE layer before `expert_mlp`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

CHUNK = 128
"""Pairs ranked by one program."""
ONE_PROGRAM_PAIRS = 512
"""Above, chunks are counted, scanned and placed by three launches of many programs."""
SCAN_CHUNKS = 32


@triton.jit(do_not_specialize=["num_tokens"])
def _route_kernel(
    logits: tl.tensor,
    weights: tl.tensor,
    experts: tl.tensor,
    logits_stride: tl.int64,
    num_tokens: tl.int32,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHOICES: tl.constexpr,
) -> None:
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, EXPERTS)
    real = token < num_tokens
    inside = real[:, None] & (expert < NUM_EXPERTS)[None, :]
    at = token.to(tl.int64)[:, None] * logits_stride + expert[None, :]
    value = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
    value = tl.where(real[:, None], value, 0.0)
    value = tl.exp(value - tl.max(value, axis=1)[:, None])
    probability = value / tl.sum(value, axis=1)[:, None]
    choice = tl.arange(0, CHOICES)
    chosen = tl.zeros([TOKENS, CHOICES], tl.int32)
    weight = tl.zeros([TOKENS, CHOICES], tl.float32)
    for i in tl.static_range(TOP_K):
        best = tl.max(probability, axis=1)
        index = tl.min(tl.where(probability == best[:, None], expert[None, :], EXPERTS), axis=1)
        index = tl.minimum(index, NUM_EXPERTS - 1)  # NaN logits must not index out of the weights
        chosen = tl.where(choice[None, :] == i, index[:, None], chosen)
        weight = tl.where(choice[None, :] == i, best[:, None], weight)
        probability = tl.where(expert[None, :] == index[:, None], -1.0, probability)
    if RENORMALIZE:
        weight = weight / tl.sum(weight, axis=1)[:, None]
    kept = real[:, None] & (choice < TOP_K)[None, :]
    out_at = token.to(tl.int64)[:, None] * TOP_K + choice[None, :]
    tl.store(weights + out_at, weight, mask=kept)
    tl.store(experts + out_at, chosen, mask=kept)


def route(logits: torch.Tensor, top_k: int, *, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` likeliest experts of each token, by softmax over all experts.

    Args:
        logits: [T, E] of the router.
        renormalize: weights of a token sum to 1 (Mixtral, Qwen3-MoE with norm_topk_prob).

    Returns:
        weights [T, top_k] float32 and experts [T, top_k] int32, likeliest first, ties by lower expert.
    """
    tokens, num_experts = logits.shape
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device)
    experts = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
    if tokens:
        width = triton.next_power_of_2(num_experts)
        block = max(1, 512 // width)
        _route_kernel[(triton.cdiv(tokens, block),)](
            logits, weights, experts, logits.stride(0), tokens,
            NUM_EXPERTS=num_experts, TOP_K=top_k, RENORMALIZE=renormalize, TOKENS=block, EXPERTS=width,
            CHOICES=triton.next_power_of_2(top_k), num_warps=4,
        )  # fmt: skip
    return weights, experts


@dataclass(frozen=True, slots=True)
class ExpertBlocks:
    """Tiles of pairs, each of one expert. P pairs = tokens x top_k; pair p is token p // top_k."""

    block_m: int
    pairs: torch.Tensor
    """[max_blocks * block_m] int32 pair ids ordered by expert; P = padding of a tile."""
    block_experts: torch.Tensor
    """[max_blocks] int32 expert of each tile in use."""
    num_blocks: torch.Tensor
    """[1] int32 tiles in use."""


@triton.jit
def _chunk_choices(
    experts: tl.tensor, chunk: tl.tensor, num_pairs: tl.int32, EXPERTS: tl.constexpr, CHUNK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """One chunk of pairs: one-hot [CHUNK, EXPERTS] of their experts, and each pair's rank among its expert's."""
    index = tl.arange(0, CHUNK)
    mine = tl.load(experts + chunk * CHUNK + index, mask=chunk * CHUNK + index < num_pairs, other=EXPERTS)
    one_hot = (mine[:, None] == tl.arange(0, EXPERTS)[None, :]).to(tl.int32)
    rank = tl.sum((tl.cumsum(one_hot, axis=0) - one_hot) * one_hot, axis=1)
    return one_hot, rank


@triton.jit(do_not_specialize=["num_pairs"])
def _assign_in_one_program_kernel(
    experts: tl.tensor,
    pairs: tl.tensor,
    block_experts: tl.tensor,
    num_blocks: tl.tensor,
    num_pairs: tl.int32,
    BLOCK_M: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    counts = tl.zeros([EXPERTS], tl.int32)
    chunks = (num_pairs + CHUNK - 1) // CHUNK
    for chunk in range(chunks):
        one_hot, _ = _chunk_choices(experts, chunk, num_pairs, EXPERTS, CHUNK)
        counts += tl.sum(one_hot, axis=0)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    first_blocks = tl.cumsum(blocks, axis=0) - blocks
    place = first_blocks * BLOCK_M
    for chunk in range(chunks):
        one_hot, rank = _chunk_choices(experts, chunk, num_pairs, EXPERTS, CHUNK)
        at = tl.sum(one_hot * place[None, :], axis=1) + rank
        pair = chunk * CHUNK + tl.arange(0, CHUNK)
        tl.store(pairs + at, pair, mask=pair < num_pairs)
        place += tl.sum(one_hot, axis=0)
    expert = tl.arange(0, EXPERTS)
    padding = place[:, None] + tl.arange(0, BLOCK_M)[None, :]
    end = (first_blocks + blocks) * BLOCK_M
    tl.store(pairs + padding, tl.zeros_like(padding) + num_pairs, mask=padding < end[:, None])
    for i in range(tl.max(blocks, axis=0)):
        tl.store(block_experts + first_blocks + i, expert, mask=i < blocks)
    tl.store(num_blocks, tl.sum(blocks, axis=0))


@triton.jit(do_not_specialize=["num_pairs"])
def _count_kernel(
    experts: tl.tensor, chunk_counts: tl.tensor, num_pairs: tl.int32, EXPERTS: tl.constexpr, CHUNK: tl.constexpr
) -> None:
    chunk = tl.program_id(0)
    one_hot, _ = _chunk_choices(experts, chunk, num_pairs, EXPERTS, CHUNK)
    tl.store(chunk_counts + chunk * EXPERTS + tl.arange(0, EXPERTS), tl.sum(one_hot, axis=0))


@triton.jit(do_not_specialize=["num_pairs", "chunks"])
def _scan_kernel(
    chunk_counts: tl.tensor,
    chunk_places: tl.tensor,
    pairs: tl.tensor,
    block_experts: tl.tensor,
    num_blocks: tl.tensor,
    num_pairs: tl.int32,
    chunks: tl.int32,
    BLOCK_M: tl.constexpr,
    EXPERTS: tl.constexpr,
    SCAN: tl.constexpr,
) -> None:
    """From the counts of each chunk its places; paddings and the experts of blocks are written too."""
    expert = tl.arange(0, EXPERTS)
    row = tl.arange(0, SCAN)
    counts = tl.zeros([EXPERTS], tl.int32)
    for start in range(0, chunks, SCAN):
        at = (start + row)[:, None] * EXPERTS + expert[None, :]
        counts += tl.sum(tl.load(chunk_counts + at, mask=(start + row < chunks)[:, None], other=0), axis=0)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    first_blocks = tl.cumsum(blocks, axis=0) - blocks
    place = first_blocks * BLOCK_M
    for start in range(0, chunks, SCAN):
        at = (start + row)[:, None] * EXPERTS + expert[None, :]
        mask = (start + row < chunks)[:, None]
        count = tl.load(chunk_counts + at, mask=mask, other=0)
        tl.store(chunk_places + at, place[None, :] + tl.cumsum(count, axis=0) - count, mask=mask)
        place += tl.sum(count, axis=0)
    padding = place[:, None] + tl.arange(0, BLOCK_M)[None, :]
    end = (first_blocks + blocks) * BLOCK_M
    tl.store(pairs + padding, tl.zeros_like(padding) + num_pairs, mask=padding < end[:, None])
    for i in range(tl.max(blocks, axis=0)):
        tl.store(block_experts + first_blocks + i, expert, mask=i < blocks)
    tl.store(num_blocks, tl.sum(blocks, axis=0))


@triton.jit(do_not_specialize=["num_pairs"])
def _place_kernel(
    experts: tl.tensor,
    chunk_places: tl.tensor,
    pairs: tl.tensor,
    num_pairs: tl.int32,
    EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    chunk = tl.program_id(0)
    one_hot, rank = _chunk_choices(experts, chunk, num_pairs, EXPERTS, CHUNK)
    place = tl.load(chunk_places + chunk * EXPERTS + tl.arange(0, EXPERTS))
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    tl.store(pairs + tl.sum(one_hot * place[None, :], axis=1) + rank, pair, mask=pair < num_pairs)


def assign_blocks(
    experts: torch.Tensor, num_experts: int, block_m: int, *, one_program_pairs: int = ONE_PROGRAM_PAIRS
) -> ExpertBlocks:
    """Order the pairs by expert in tiles of `block_m`, on the device.

    Args:
        experts: [T, top_k] int32 of `route`, contiguous.
        one_program_pairs: up to so many pairs one launch does it, above it takes three.
    """
    num_pairs = experts.numel()
    max_blocks = triton.cdiv(num_pairs, block_m) + min(num_experts, num_pairs)
    width, device = triton.next_power_of_2(num_experts), experts.device
    pairs = torch.empty(max_blocks * block_m, dtype=torch.int32, device=device)
    block_experts = torch.empty(max_blocks, dtype=torch.int32, device=device)
    num_blocks = torch.empty(1, dtype=torch.int32, device=device)
    if num_pairs <= one_program_pairs:
        _assign_in_one_program_kernel[(1,)](
            experts, pairs, block_experts, num_blocks, num_pairs,
            BLOCK_M=block_m, EXPERTS=width, CHUNK=CHUNK, num_warps=8,
        )  # fmt: skip
        return ExpertBlocks(block_m, pairs, block_experts, num_blocks)
    chunks = triton.cdiv(num_pairs, CHUNK)
    counts, places = torch.empty((2, chunks, width), dtype=torch.int32, device=device)
    _count_kernel[(chunks,)](experts, counts, num_pairs, EXPERTS=width, CHUNK=CHUNK, num_warps=8)
    _scan_kernel[(1,)](
        counts, places, pairs, block_experts, num_blocks, num_pairs, chunks,
        BLOCK_M=block_m, EXPERTS=width, SCAN=SCAN_CHUNKS, num_warps=8,
    )  # fmt: skip
    _place_kernel[(chunks,)](experts, places, pairs, num_pairs, EXPERTS=width, CHUNK=CHUNK, num_warps=8)
    return ExpertBlocks(block_m, pairs, block_experts, num_blocks)

"""Sampling parameters and counters per row, on the host and on the device.

Which features a row uses is kept as bits, so that a step learns with one vectorized OR what it need not do.
"""

from __future__ import annotations

import secrets
from enum import IntFlag

import numpy as np
import torch
from torch import Tensor

from services.worker.rows import I64
from services.worker.sampling.draw import GREEDY_BELOW, Filters
from services.worker.sampling.masks import MaskUpdate
from services.worker.sampling.penalties import Penalties
from services.worker.sampling.sparse import SparseRows
from services.worker.upload import upload, upload_all
from shared.messages.step import RowInit


class Uses(IntFlag):
    """What a row asks of the sampler."""

    RANDOM = 1
    PENALTY = 2
    BIAS = 4
    MIN_NEW = 8
    LOGPROB = 16
    MASK = 32


class SamplingRows:
    """Changed by `init` and `advance`; lives as long as the engine."""

    def __init__(
        self, max_rows: int, vocab_size: int, device: torch.device, random_seed: int | None, mask_slots: int = 0
    ) -> None:
        self._temperature = np.ones(max_rows, np.float32)
        self._top_k = np.zeros(max_rows, np.int64)
        self._top_p = np.ones(max_rows, np.float32)
        self._min_p = np.zeros(max_rows, np.float32)
        self._min_new = np.zeros(max_rows, np.int64)
        self._generated = np.zeros(max_rows, np.int64)
        self._seed = np.zeros(max_rows, np.int64)
        self.top_logprobs = np.zeros(max_rows, np.int64)
        self._uses = np.zeros(max_rows, np.int64)
        self.penalties = Penalties(max_rows, vocab_size, device)
        self._bias, self._stops = SparseRows(max_rows, device), SparseRows(max_rows, device)
        self._mask_slot = np.full(max_rows, -1, np.int64)
        self._mask_slots, self._vocab = mask_slots, vocab_size
        self._forbidden = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)  # [slots, V], made when needed
        self._device = device
        self._draw_seed = np.random.default_rng(secrets.randbits(63) if random_seed is None else abs(random_seed))

    def init(self, inits: list[RowInit]) -> None:
        """Give rows to requests."""
        for init in inits:
            self._init(init)

    def _init(self, init: RowInit) -> None:
        row = init.row
        self._mask_slot[row] = -1
        seed = int(self._draw_seed.integers(2**63)) if init.seed is None else init.seed
        self._seed[row] = np.uint64(seed % 2**64).astype(np.int64)
        self._temperature[row], self._top_k[row] = init.temperature, init.top_k
        self._top_p[row], self._min_p[row] = init.top_p, init.min_p
        self._generated[row], self._min_new[row] = init.num_generated, init.min_new_tokens
        self.top_logprobs[row] = init.top_logprobs_num
        self._bias.set(row, {int(key): value for key, value in init.logit_bias.items()})
        self._stops.set(row, dict.fromkeys(init.stop_ids, -torch.inf) if init.min_new_tokens else {})
        self.penalties.init(init)
        uses = Uses(0)
        uses |= Uses.RANDOM if init.temperature >= GREEDY_BELOW and init.top_k != 1 else Uses(0)
        uses |= Uses.PENALTY if Penalties.used_by(init) else Uses(0)
        uses |= Uses.BIAS if init.logit_bias else Uses(0)
        uses |= Uses.MIN_NEW if init.min_new_tokens and init.stop_ids else Uses(0)
        uses |= Uses.LOGPROB if init.return_logprob else Uses(0)
        self._uses[row] = uses

    def set_masks(self, update: MaskUpdate) -> None:
        """What rows may sample from now on."""
        if not len(self._forbidden):
            self._forbidden = self._forbidden.new_zeros((self._mask_slots, self._vocab))
        if len(update.new_slots):
            where = upload(update.new_slots, self._device)
            self._forbidden.index_copy_(0, where, upload(~update.allowed(), self._device))
        self._mask_slot[update.rows] = update.slots
        masked = update.slots >= 0
        self._uses[update.rows] = np.where(
            masked, self._uses[update.rows] | int(Uses.MASK), self._uses[update.rows] & ~int(Uses.MASK)
        )

    def count_forced(self, rows: I64, counts: I64, tokens: I64) -> None:
        """Rows got tokens without sampling."""
        self._generated[rows] += counts
        every = np.repeat(rows, counts)
        penalised = np.flatnonzero(self._uses[every] & Uses.PENALTY)
        if len(penalised):
            self.penalties.count(every[penalised], upload(tokens[penalised], self._device))

    def _mask_(self, logits: Tensor, index: I64, rows: I64) -> None:
        at, slots = upload(index, logits.device), upload(self._mask_slot[rows], logits.device)
        if len(index) == len(logits):
            logits.masked_fill_(self._forbidden.index_select(0, slots), -torch.inf)
        else:
            logits[at] = logits[at].masked_fill_(self._forbidden.index_select(0, slots), -torch.inf)

    def uses(self, rows: I64) -> I64:
        """[N] bits of `Uses`; a minimum that is reached no longer counts."""
        uses = self._uses[rows]
        reached = self._generated[rows] >= self._min_new[rows]
        return np.where(reached, uses & ~int(Uses.MIN_NEW), uses)

    def adjust_(self, logits: Tensor, rows: I64, uses: I64) -> None:
        """Apply penalties, bias, forbidden stops and masks to logits [N, V] in place."""
        for bit, change in (
            (Uses.PENALTY, self.penalties.apply_),
            (Uses.BIAS, self._bias.add_to),
            (Uses.MIN_NEW, self._stops.add_to),
            (Uses.MASK, self._mask_),
        ):
            index = np.flatnonzero(uses & bit)
            if len(index):
                change(logits, index, rows[index])

    def filters(self, rows: I64) -> Filters:
        """Parameters of the draw."""
        return Filters(self._temperature[rows], self._top_k[rows], self._top_p[rows], self._min_p[rows])

    def stream(self, rows: I64) -> tuple[Tensor, Tensor]:
        """Seeds and counters [N] of the rows' random numbers."""
        seeds, counters = upload_all([self._seed[rows], self._generated[rows]], self._device)
        return seeds, counters

    def advance(self, rows: I64, uses: I64, tokens: Tensor) -> None:
        """Count one more token for each row."""
        self._generated[rows] += 1
        index = np.flatnonzero(uses & Uses.PENALTY)
        if len(index):
            self.penalties.count(rows[index], tokens[upload(index, self._device)])

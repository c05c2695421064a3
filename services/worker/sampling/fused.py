"""The sampler of the GPU: everything a row's draw needs lies on the device, and nothing waits for it.

Same rules as `TorchSampler`; another stream of random numbers (Philox), so a seed repeats on one kind of device only.
Imported only where Triton is there. Also runs under Triton's interpreter, on CPU tensors.
"""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor

from services.worker.kernels import sampling_table as columns
from services.worker.kernels.sampling import sample
from services.worker.kernels.sampling_table import IN_PROMPT, sampling_table
from services.worker.kernels.sampling_workspace import sampling_workspace
from services.worker.rows import I64
from services.worker.sampling.draw import GREEDY_BELOW
from services.worker.sampling.logprobs import Asked, Logprobs, finite, logprobs_of
from services.worker.sampling.masks import MaskUpdate
from services.worker.sampling.penalties import Penalties
from services.worker.sampling.sampler import Sampled
from services.worker.upload import upload, upload_all
from shared.messages.step import RowInit

_FLOATS, _INTS, _BANNED = columns.FLOATS.value, columns.INTS.value, columns.MAX_BANNED.value


class FusedSampler:
    """Changed by `init` and by every `sample`; lives as long as the engine."""

    def __init__(
        self, max_rows: int, vocab_size: int, device: torch.device, random_seed: int | None, mask_slots: int = 1
    ) -> None:
        self._table = sampling_table(max_rows, vocab_size, device, mask_slots=mask_slots)
        self._workspace = sampling_workspace(max_rows, vocab_size, device)
        self._counts, self._bias = _Slots(max_rows), _Slots(max_rows)
        self._filtered = np.zeros(max_rows, np.bool_)
        self._asks = np.zeros(max_rows, np.bool_)
        self._top = np.zeros(max_rows, np.int64)
        self._device, self._vocab = device, vocab_size
        self._draw_seed = np.random.default_rng(secrets.randbits(63) if random_seed is None else abs(random_seed))

    def init(self, inits: list[RowInit]) -> None:
        rows = np.array([init.row for init in inits], np.int64)
        parts = [np.stack(part).view(np.int32) for part in zip(*map(self._columns, inits), strict=True)]
        packed = upload(np.concatenate(parts, axis=1), self._device)
        floats, ints, seeds, banned = torch.split(packed, [part.shape[1] for part in parts], dim=1)
        at, table = upload(rows, self._device), self._table
        table.floats.index_copy_(0, at, floats.contiguous().view(torch.float32))
        table.ints.index_copy_(0, at, ints)
        table.seeds.index_copy_(0, at, seeds.contiguous().view(torch.int64).view(-1))
        table.banned_ids.index_copy_(0, at, banned)
        for init in inits:
            self._note(init)

    def top_logprobs(self, rows: I64) -> I64:
        return self._top[rows]

    def set_masks(self, update: MaskUpdate) -> None:
        table, device = self._table, self._device
        if len(update.new_slots):
            table.masks.index_copy_(0, upload(update.new_slots, device), upload(update.new_masks, device))
        rows, slots = upload_all([update.rows, update.slots], device)
        table.ints[:, columns.MASK_SLOT.value].index_copy_(0, rows, slots.int())

    def count_forced(self, rows: I64, counts: I64, tokens: I64) -> None:
        where, added = upload_all([rows, counts], self._device)
        self._table.ints[:, columns.STEP.value].index_add_(0, where, added.int())
        slots = np.array([self._counts.of(row) for row in np.repeat(rows, counts).tolist()], np.int64)
        counted = np.flatnonzero(slots >= 0)
        if len(counted):
            at, token = upload_all([slots[counted], tokens[counted]], self._device)
            one = torch.ones(1, dtype=torch.int32, device=self._device)
            self._table.counts.index_put_((at, token), one, accumulate=True)

    def sample(self, logits: Tensor, rows: I64, at: Tensor) -> Sampled:
        tokens = torch.empty(len(rows), dtype=torch.int32, device=self._device)
        chosen = torch.empty(len(rows), dtype=torch.float32, device=self._device)
        filtered = bool(self._filtered[rows].any())
        sample(logits, at, self._table, self._workspace, tokens, chosen, filtered=filtered)
        wide = tokens.long()
        index = np.flatnonzero(self._asks[rows])
        if not len(index):
            return Sampled(wide)
        where, wanted = upload(index, self._device), self._top[rows[index]]
        if wanted.any():
            found = logprobs_of(logits.index_select(0, where), wide.index_select(0, where), int(wanted.max()))
        else:
            none = chosen.new_empty((len(index), 0))
            found = Logprobs(finite(chosen.index_select(0, where)), none.long(), none)
        return Sampled(wide, Asked(index, wanted, found))

    def _columns(self, init: RowInit) -> tuple[np.ndarray, ...]:
        """The row's line of each part of the table."""
        floats, ints = np.zeros(_FLOATS, np.float32), np.zeros(_INTS, np.int32)
        floats[columns.TEMPERATURE.value] = init.temperature if init.temperature >= GREEDY_BELOW else 0.0
        floats[columns.TOP_P.value], floats[columns.MIN_P.value] = init.top_p, init.min_p
        floats[columns.REPETITION.value] = init.repetition_penalty
        floats[columns.PRESENCE.value], floats[columns.FREQUENCY.value] = init.presence_penalty, init.frequency_penalty
        ints[columns.TOP_K.value] = min(init.top_k, self._vocab)
        ints[columns.STEP.value], ints[columns.MIN_STEP.value] = init.num_generated, init.min_new_tokens
        ints[columns.COUNT_SLOT.value] = self._counts.take(init.row, Penalties.used_by(init))
        ints[columns.BIAS_SLOT.value] = self._bias.take(init.row, bool(init.logit_bias))
        ints[columns.MASK_SLOT.value] = -1
        banned = np.full(_BANNED, -1, np.int32)
        if init.min_new_tokens:
            assert len(init.stop_ids) <= _BANNED, "plans are checked"
            ints[columns.NUM_BANNED.value] = len(init.stop_ids)
            banned[: len(init.stop_ids)] = init.stop_ids
        seed = int(self._draw_seed.integers(2**63)) if init.seed is None else init.seed
        return floats, ints, np.array([seed % 2**64], np.uint64), banned

    def _note(self, init: RowInit) -> None:
        """What the host must know of the row, and its lines of the banks."""
        row = init.row
        self._filtered[row] = init.top_k > 0 or init.top_p < 1 or init.min_p > 0
        self._asks[row], self._top[row] = init.return_logprob, init.top_logprobs_num
        slot = self._counts.of(row)
        if slot >= 0:
            self._table = self._table._replace(counts=_grown(self._table.counts, self._counts.count))
            line = np.bincount(init.output_ids, minlength=self._vocab).astype(np.int32)
            line[init.history_ids] |= IN_PROMPT
            self._table.counts[slot].copy_(upload(line, self._device))
        slot = self._bias.of(row)
        if slot >= 0:
            self._table = self._table._replace(bias=_grown(self._table.bias, self._bias.count))
            keys = np.array([int(key) for key in init.logit_bias], np.int64)
            where = upload(keys, self._device)
            values = upload(np.array(list(init.logit_bias.values()), np.float32), self._device)
            self._table.bias[slot].zero_().index_copy_(0, where, values)


class _Slots:
    """Places in a bank, for the rows that need one."""

    def __init__(self, max_rows: int) -> None:
        self._slot_of = np.full(max_rows, -1, np.int64)
        self._free: list[int] = []
        self.count = 0
        """Places the bank must have."""

    def of(self, row: int) -> int:
        """-1 = none."""
        return int(self._slot_of[row])

    def take(self, row: int, wanted: bool) -> int:
        """The row's place; a new one, the one it has, or none any more."""
        have = self.of(row)
        if wanted and have < 0:
            if not self._free:
                self._free.append(self.count)
                self.count += 1
            self._slot_of[row] = self._free.pop()
        elif not wanted and have >= 0:
            self._free.append(have)
            self._slot_of[row] = -1
        return self.of(row)


def _grown(bank: Tensor, count: int) -> Tensor:
    """The bank with at least `count` places."""
    have = bank.shape[0]
    if have >= count:
        return bank
    return torch.cat((bank, bank.new_zeros((max(count, 2 * have) - have, bank.shape[1]))))

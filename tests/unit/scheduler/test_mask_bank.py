"""Interned masks: slots, eviction, what travels."""

from __future__ import annotations

import numpy as np
import pytest

from services.scheduler.mask_bank import LIST_TOKENS, MOST_BYTES, MaskBank, allowed_tokens
from services.worker.sampling.masks import MaskUpdate

VOCAB = 1000


def mask_of(tokens: list[int], vocab: int = VOCAB) -> bytes:
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[tokens] = 1
    return np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("count", [1, 3, LIST_TOKENS, LIST_TOKENS + 1, VOCAB])
def test_short_lists_of_tokens_are_found(count: int) -> None:
    tokens = sorted(np.random.default_rng(count).permutation(VOCAB)[:count].tolist())
    found = allowed_tokens(np.frombuffer(mask_of(tokens), np.int32), LIST_TOKENS)
    assert found is None if count > LIST_TOKENS else found is not None and found.tolist() == tokens


def test_what_a_worker_reads_is_what_rows_were_given_whatever_was_evicted() -> None:
    rng = np.random.default_rng(1)
    masks = [sorted(rng.permutation(VOCAB)[: int(rng.choice([1, 5, 200, 900]))].tolist()) for _ in range(12)]
    bank, worker = MaskBank(5, VOCAB), {}
    for seq in range(60):
        wanted = [(row, masks[int(rng.integers(12))]) for row in range(int(rng.integers(1, 5)))]
        given = [(row, t[0] if len(t) == 1 and rng.random() < 0.5 else mask_of(t)) for row, t in wanted]
        (message,) = bank.message("e", "s", seq, [*given, (9, None)])
        update = MaskUpdate([message], 10, 5, VOCAB)
        for slot, allowed in zip(update.new_slots.tolist(), update.allowed(), strict=True):
            worker[slot] = np.flatnonzero(allowed).tolist()
        assert update.rows.tolist() == [*(row for row, _ in wanted), 9]
        assert [worker[slot] for slot in update.slots[:-1].tolist()] == [tokens for _, tokens in wanted]
        assert update.slots[-1] == -1


def test_many_new_masks_are_cut_into_messages() -> None:
    vocab = 4096 * 32
    count = MOST_BYTES // 16384 + 20
    masks = [mask_of([*range(100), 200 + n], vocab) for n in range(count)]
    messages = MaskBank(count, vocab).message("e", "s", 3, list(enumerate(masks)))
    assert len(messages) == 2
    update = MaskUpdate(messages, count, count, vocab)
    assert update.rows.tolist() == list(range(count))
    assert all(update.new_masks[slot].tobytes() == masks[row] for row, slot in enumerate(update.slots.tolist()))

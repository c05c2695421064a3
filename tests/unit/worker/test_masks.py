"""Masks on the worker: how they come, what is refused, and what samplers make of them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.mask_inbox import MaskInbox
from services.worker.sampling.masks import MaskUpdate
from services.worker.sampling.rows import SamplingRows
from services.worker.sampling.sampler import TorchSampler
from shared.errors import InvalidRequest
from shared.messages.step import RowInit, StepMasks

VOCAB, SLOTS = 100, 6


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def lists(rows: dict[int, list[int]], session: str = "s", seq: int = 0) -> StepMasks:
    """Row to what it may sample; slots 0, 1, ..."""
    counts = [len(tokens) for tokens in rows.values()]
    return StepMasks(
        "e", session, seq, i32(*rows), i32(*range(len(rows))), list_slots=i32(*range(len(rows))),
        list_counts=i32(*counts), list_tokens=i32(*(t for tokens in rows.values() for t in tokens)),
    )  # fmt: skip


def test_a_waiting_step_gets_all_messages_of_its_plan() -> None:
    inbox = MaskInbox(timeout_s=10.0)
    inbox.begin("s")
    inbox.put(lists({0: [1]}, seq=4))
    inbox.put(lists({0: [1]}, seq=3))
    timer = threading.Timer(0.05, lambda: inbox.put(lists({1: [2], 2: [3]}, seq=3)))
    timer.start()
    assert [masks.rows.tolist() for masks in inbox.take("s", 3, 3)] == [[0], [1, 2]]
    assert [masks.seq for masks in inbox.take("s", 4, 1)] == [4]


def test_masks_that_do_not_come_are_waited_for_until_the_timeout_or_another_session() -> None:
    inbox = MaskInbox(timeout_s=0.05)
    inbox.begin("s")
    with pytest.raises(TimeoutError, match="step 7"):
        inbox.take("s", 7, 1)
    inbox = MaskInbox(timeout_s=60.0)
    inbox.begin("s")
    timer = threading.Timer(0.05, lambda: inbox.begin("t"))
    timer.start()
    with pytest.raises(TimeoutError):
        inbox.take("s", 7, 1)


def test_masks_nobody_asks_for_do_not_pile_up() -> None:
    inbox = MaskInbox()
    for seq in range(1000):
        inbox.put(lists({0: [1]}, seq=seq))
    assert len(inbox._waiting) <= 64


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": i32(16)}, {"slots": i32(SLOTS)}, {"slots": i32(-2)}, {"rows": i32(0, 1)},
        {"list_tokens": i32(VOCAB)}, {"list_counts": i32(2)}, {"list_counts": i32(0), "list_tokens": i32()},
        {"list_slots": i32(-1)}, {"new_slots": i32(1)}, {"new_masks": np.zeros((1, 3), np.int32)},
        {"new_slots": i32(SLOTS), "new_masks": np.zeros((1, 4), np.int32)},
        {"new_slots": i32(1), "new_masks": np.zeros((1, 5), np.int32)},
    ],
)  # fmt: skip
def test_masks_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "rows": i32(0), "slots": i32(0), "list_slots": i32(0), "list_counts": i32(1), "list_tokens": i32(5)
    } | wrong  # fmt: skip
    with pytest.raises(InvalidRequest, match="masks"):
        MaskUpdate([StepMasks("e", "s", 0, **fields)], 16, SLOTS, VOCAB)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_sample_what_their_masks_allow_and_others_what_they_like(temperature: float) -> None:
    sampler = TorchSampler(SamplingRows(16, VOCAB, torch.device("cpu"), 3, SLOTS))
    sampler.init([RowInit(row, temperature=temperature, logit_bias={"50": 100.0}) for row in range(4)])
    rows = np.arange(4)
    logits = torch.zeros(4, VOCAB)
    for allowed in ({1: [7], 3: [8, 9]}, {1: [60, 61, 62], 3: [99]}):
        sampler.set_masks(MaskUpdate([lists(allowed)], 16, SLOTS, VOCAB))
        tokens = sampler.sample(logits.clone(), rows, torch.from_numpy(rows)).tokens.tolist()
        assert tokens[0] == tokens[2] == 50
        assert tokens[1] in allowed[1]
        assert tokens[3] in allowed[3]
    sampler.init([RowInit(1, temperature=0.0, logit_bias={"51": 100.0})])
    assert sampler.sample(logits[:1].clone(), rows[1:2], torch.tensor([1])).tokens.tolist() == [51]
    off = StepMasks("e", "s", 0, i32(3), i32(-1))
    sampler.set_masks(MaskUpdate([off], 16, SLOTS, VOCAB))
    assert sampler.sample(logits[:1].clone(), rows[3:], torch.tensor([3])).tokens.tolist() == [50]


def test_forced_tokens_count_for_penalties_and_the_random_stream() -> None:
    """Three sampled tokens, or two that were forced and one that was sampled: the next draw is the same."""
    outcomes = []
    for forced in (False, True):
        sampler = TorchSampler(SamplingRows(4, VOCAB, torch.device("cpu"), 3, SLOTS))
        sampler.init([RowInit(2, temperature=1.0, seed=5, frequency_penalty=2.0)])
        rows = np.array([2])
        if forced:
            sampler.count_forced(rows, np.array([2]), np.array([10, 11]))
        else:
            for token in (10, 11):
                sampler.set_masks(MaskUpdate([lists({2: [token]})], 4, SLOTS, VOCAB))
                sampler.sample(torch.zeros(1, VOCAB), rows, torch.tensor([2]))
            sampler.set_masks(MaskUpdate([StepMasks("e", "s", 0, i32(2), i32(-1))], 4, SLOTS, VOCAB))
        logits = torch.full((1, VOCAB), -30.0)
        logits[0, [10, 11, 12]] = torch.tensor([1.0, 1.0, 0.0])
        outcomes.append([sampler.sample(logits.clone(), rows, torch.tensor([2])).tokens.item() for _ in range(5)])
    assert outcomes[0] == outcomes[1]

"""Several ranks compute what one computes, and find together again or end when one misses a plan or dies."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, set_seed

from services.worker.lockstep import GroupBroken, Lockstep
from services.worker.tensor_parallel import Alone
from shared.messages.step import EngineFault, RowInit, StepPlan, StepResult
from tests.unit.worker.conftest import SHAPE
from tests.unit.worker.driver import Driver, Extend, make_engine
from tests.unit.worker.ranks import Ranks


def script(path: Path) -> tuple[list[StepPlan], list[list[int]]]:
    """Plans with every kind of row, and what one rank answers."""
    driver = Driver(make_engine(path))
    inits = [
        RowInit(0, temperature=0.0), RowInit(1, temperature=0.8, seed=5, top_p=0.9),
        RowInit(2, temperature=0.0, repetition_penalty=1.3, history_ids=[7, 8], logit_bias={"5": 1.0}),
        RowInit(3, temperature=1.0, seed=6, top_k=20, return_logprob=True, top_logprobs_num=2),
    ]  # fmt: skip
    driver.generate([list(range(3, 3 + n)) for n in (40, 5, 70, 1)], 5, chunk=32, inits=inits)
    driver.run([Extend(0, [9, 8, 7], start=30, lp_start=0), Extend(3, [4], start=2, sample=False)], [1])
    plans = driver.sent
    results = [driver.engine.execute(in_session(plan, "replay")) for plan in plans]
    return plans, [r.tokens.tolist() for r in results if isinstance(r, StepResult)]


def in_session(plan: StepPlan, session: str) -> StepPlan:
    return dataclasses.replace(plan, session=session)


@pytest.fixture(scope="module")
def pair(llama: tuple[Path, Any]) -> Iterator[Ranks]:
    """Two ranks on the tied llama; a test begins its own session."""
    with Ranks(llama[0], 2) as ranks:
        yield ranks


def made(path: Path, **changes: Any) -> Path:
    set_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias" in name:
                p.normal_(0.0, 0.2)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 321},
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 81},
    ],
    ids=["even-and-biased", "uneven", "more-ranks-than-key-value-heads"],
)
def test_ranks_compute_what_one_rank_computes(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = made(tmp_path, **changes)
    plans, alone = script(path)
    with Ranks(path, 2) as ranks:
        assert len(set(ranks.num_pages)) == 1
        assert ranks.tokens(plans) == alone


@pytest.mark.parametrize("stacked", [False, True])
def test_ranks_share_every_expert(tmp_path: Path, stacked: bool) -> None:
    """Of 37 columns the ranks have 18 and 19."""
    set_seed(3)
    shape = {**SHAPE, "intermediate_size": 37, "num_local_experts": 5, "num_experts_per_tok": 2}
    MixtralForCausalLM(MixtralConfig(**shape)).save_pretrained(tmp_path, save_original_format=not stacked)
    plans, alone = script(tmp_path)
    with Ranks(tmp_path, 2) as ranks:
        assert ranks.tokens(plans) == alone


def test_ranks_share_dense_layers_and_the_expert_that_all_tokens_go_to(
    checkpoint: Callable[[str], tuple[Path, Any]],
) -> None:
    path, _ = checkpoint("qwen2-moe")
    plans, alone = script(path)
    with Ranks(path, 2) as ranks:
        assert ranks.tokens(plans) == alone


def test_a_rank_that_missed_a_plan_reports_it_and_the_next_session_works(llama: tuple[Path, Any], pair: Ranks) -> None:
    plans, alone = script(llama[0])
    first = [in_session(p, "first") for p in plans]
    assert pair.tokens(first[:3]) == alone[:3]
    pair.tell(0, first[3])  # rank 1 never hears it
    for rank in (0, 1):
        pair.tell(rank, first[4])
    gap = pair.answer(1)
    assert isinstance(gap, EngineFault)
    assert (gap.reason, gap.seq) == ("gap", 4)
    for rank in (0, 1):
        pair.tell(rank, in_session(plans[0], "second"))
    # Rank 0 drops what it was waiting with, and the plan after it, without an answer of its own.
    assert [pair.answer(0), pair.answer(0)] == [None, None]
    assert pair.answer(0).tokens.tolist() == alone[0]
    assert pair.answer(1) is None
    assert pair.tokens([in_session(p, "second") for p in plans[1:]]) == alone[1:]


def test_a_bad_plan_ends_the_session_on_every_rank_without_waiting(llama: tuple[Path, Any], pair: Ranks) -> None:
    plans, alone = script(llama[0])
    bad = StepPlan("w", "bad", 0, new_rows=[RowInit(99)])
    for rank in (0, 1):
        pair.tell(rank, bad)
    assert [pair.answer(rank).reason for rank in (0, 1)] == ["execution", "execution"]
    assert pair.tokens(plans[:2]) == alone[:2]


def test_when_a_rank_dies_the_others_fail_at_once(llama: tuple[Path, Any]) -> None:
    plans, _ = script(llama[0])
    with Ranks(llama[0], 2) as ranks:
        ranks.execute(plans[0])
        ranks.processes[1].kill()
        ranks.processes[1].join()
        ranks.tell(0, plans[1])
        assert ranks.answer(0).startswith("RuntimeError")


class Threads(Alone):
    """A communicator between threads, for what needs no arithmetic."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[list[int]]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._board = barrier, board

    def all_integers(self, values: list[int]) -> list[list[int]]:
        self._board[self.rank] = values
        self._barrier.wait(10)
        seen = list(self._board)
        self._barrier.wait(10)
        return seen


def meetings(*plans_of: list[tuple[str, int]]) -> list[list[bool]]:
    """What `meet` tells each rank for its plans in order."""
    size = len(plans_of)
    barrier: threading.Barrier = threading.Barrier(size)
    board: list[list[int]] = [[] for _ in range(size)]

    def rank(r: int) -> list[bool]:
        lockstep = Lockstep(Threads(r, size, barrier, board))
        return [lockstep.meet(*plan) for plan in plans_of[r]]

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))


def test_ranks_with_stale_plans_drop_them_until_all_hold_the_new_session() -> None:
    new = [("new", 0), ("new", 1)]
    assert meetings([("old", 5), *new], new, [("old", 5), ("old", 6), *new]) == [
        [False, True, True],
        [True, True],
        [False, False, True, True],
    ]


def test_ranks_that_begin_different_sessions_give_up() -> None:
    with pytest.raises(GroupBroken, match="different plans"):
        meetings([("one", 0)], [("two", 0)])

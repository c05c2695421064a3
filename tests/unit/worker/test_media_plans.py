"""Plans with images: every way to be wrong is refused, and positions reach each row as they should."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.batch import Batch, build_batch
from services.worker.plan_check import Limits, Work, check_plan
from services.worker.rows import Rows
from shared.errors import InvalidRequest
from shared.messages.step import RowInit, StepPlan
from tests.unit.worker.driver import i32

CPU = torch.device("cpu")
LIMITS = Limits(num_pages=32, context_length=64, vocab_size=100)
STAGED = {3: 4, 5: 2}
"""Slots and their tokens."""
NONE = np.zeros(0, np.int64)


def rows_of(*inits: RowInit, length: int = 0) -> Rows:
    """Rows with two pages of 16 tokens each; of `length` tokens, the last of them sampled."""
    rows = Rows(max_rows=8, max_pages_per_row=4, page_size=16, device=CPU)
    if inits:
        taken = np.array([init.row for init in inits], np.int64)
        rows.init(list(inits))
        rows.append_pages(taken, 1 + 2 * taken, np.full(len(taken), 2, np.int64))
        rows.seq_lens.put(taken, length)
        rows.has_token[taken] = length > 0
    return rows


def plan(**changes: Any) -> StepPlan:
    """Rows 0 and 1 get six and two tokens, with an image of four in the first."""
    base = StepPlan(
        engine_id="e", session="s", seq=0, new_rows=[RowInit(0, position_delta=-2), RowInit(1)],
        page_rows=i32([0, 1]), page_starts=i32([1, 3]), page_lens=i32([2, 2]),
        ext_rows=i32([0, 1]), ext_starts=i32([0, 0]), ext_lens=i32([6, 2]), ext_tokens=i32([5, 9, 9, 9, 9, 6, 7, 8]),
        ext_sample=np.array([1, 1], np.uint8), ext_media=i32([[1, 4, 3, 0]]),
        ext_positions=i32([[0, 1, 1, 1, 1, 3, 0, 1], [0, 1, 1, 2, 2, 3, 0, 1], [0, 1, 2, 1, 2, 3, 0, 1]]),
        decode_rows=i32([]),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def checked(asked: StepPlan, rows: Rows | None = None) -> Work:
    return check_plan(asked, rows or rows_of(), LIMITS, NONE, STAGED)


def test_a_right_plan_is_taken() -> None:
    work = checked(plan(drop_media=i32([5, 77])))
    assert work.has_media
    assert work.ext_media.tolist() == [[1, 4, 3, 0]]
    assert work.drop_media.tolist() == [5, 77]
    assert not checked(plan(ext_media=None, ext_positions=None, new_rows=[RowInit(0), RowInit(1)])).has_media


POSITIONS = plan().ext_positions
assert POSITIONS is not None
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a slot that is not staged": ({"ext_media": i32([[1, 4, 4, 0]])}, "slot 4 is not staged"),
    "more rows than the image has": ({"ext_media": i32([[1, 4, 3, 1]])}, r"rows 1\.\.4 of media of 4"),
    "far more rows": ({"ext_media": i32([[1, 3, 5, 0]])}, "of media of 2"),
    "rows before the first": ({"ext_media": i32([[1, 2, 3, -1]])}, r"rows -1\.\.0"),
    "tokens behind the last": ({"ext_media": i32([[6, 3, 3, 0]])}, r"tokens 6\.\.8 of 8"),
    "tokens before the first": ({"ext_media": i32([[-1, 2, 3, 0]])}, r"tokens -1\.\.0 of 8"),
    "no tokens": ({"ext_media": i32([[1, 0, 3, 0]])}, "media at tokens"),
    "fewer than no tokens": ({"ext_media": i32([[4, -2, 3, 0]])}, "media at tokens"),
    "the second run": ({"ext_media": i32([[1, 2, 3, 0], [3, 2, 9, 0]])}, "slot 9 is not staged"),
    "runs of three numbers": ({"ext_media": i32([[1, 4, 3]])}, "not N x 4"),
    "a flat list": ({"ext_media": i32([1, 4, 3, 0])}, "1 dimensions where 2 are wanted"),
    "positions of another length": ({"ext_positions": POSITIONS[:, :7]}, r"\(3, 7\), not 3 x 8"),
    "positions of two dimensions": ({"ext_positions": POSITIONS[:2]}, r"\(2, 8\), not 3 x 8"),
    "a flat list of positions": ({"ext_positions": POSITIONS[0]}, "1 dimensions"),
    "a negative position": ({"ext_positions": POSITIONS - 1}, "ext_positions -1"),
    "a position behind the context": ({"ext_positions": POSITIONS + 61}, "ext_positions 64"),
    "an image's name for a token": ({"ext_tokens": i32([5, -2, -2, -2, -2, 6, 7, 8])}, "ext_tokens -2"),
    "dropped slots in two dimensions": ({"drop_media": i32([[1]])}, "2 dimensions"),
    "a delta over the context": ({"new_rows": [RowInit(0, position_delta=65), RowInit(1)]}, "position_delta 65"),
    "a delta under it": ({"new_rows": [RowInit(0, position_delta=-65), RowInit(1)]}, "position_delta -65"),
    "an index before the first position": ({"ext_positions": None}, "extend row's position is negative"),
    "positions that run over the context": (
        {"new_rows": [RowInit(0, position_delta=59), RowInit(1)]}, r"row 0 would hold 6 tokens.*5"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plan_is_refused_with_what_is_wrong(name: str) -> None:
    changes, says = WRONG[name]
    with pytest.raises(InvalidRequest, match=says):
        checked(plan(**changes))


def test_media_without_tokens_to_put_them_at_are_refused() -> None:
    nothing = StepPlan(engine_id="e", session="s", seq=0, ext_media=i32([[0, 1, 3, 0]]), decode_rows=i32([]))
    with pytest.raises(InvalidRequest, match="of 0"):
        checked(nothing)


def test_a_decoding_row_whose_positions_are_ahead_ends_with_the_context() -> None:
    rows = rows_of(RowInit(0, position_delta=40), RowInit(1), length=24)
    step = StepPlan(engine_id="e", session="s", seq=1, decode_rows=i32([0]))
    with pytest.raises(InvalidRequest, match="row 0 would hold 25 tokens"):
        checked(step, rows)
    checked(dataclasses.replace(step, decode_rows=i32([1])), rows)


def test_a_decoding_row_has_no_position_before_the_first() -> None:
    rows = rows_of(RowInit(0, position_delta=-11), RowInit(1, position_delta=-10), length=10)
    step = StepPlan(engine_id="e", session="s", seq=1, decode_rows=i32([0]))
    with pytest.raises(InvalidRequest, match="decode row's position is negative"):
        checked(step, rows)
    checked(dataclasses.replace(step, decode_rows=i32([1])), rows)


def built(asked: StepPlan, rows: Rows, min_tokens: int = 1) -> Batch:
    work = checked(asked, rows)
    if work.new_rows:
        rows.init(work.new_rows)
    if len(work.page_rows):
        rows.append_pages(work.page_rows, work.page_starts, work.page_lens)
    return build_batch(work, rows, min_tokens)


def test_embeddings_go_to_the_tokens_that_the_runs_name() -> None:
    runs = i32([[1, 2, 3, 2], [3, 1, 5, 0], [6, 2, 5, 0]])
    batch = built(plan(ext_media=runs), rows_of())
    assert batch.media_at.tolist() == [1, 2, 3, 6, 7]
    assert built(plan(ext_media=None), rows_of()).media_at.tolist() == []


def test_three_dimensions_go_to_extends_and_decode_rows_follow_their_deltas() -> None:
    rows = rows_of(RowInit(4, position_delta=-3), RowInit(5), length=10)
    batch = built(plan(decode_rows=i32([4, 5])), rows, min_tokens=12)
    assert batch.positions.shape == (3, 12)
    np.testing.assert_array_equal(batch.positions[:, :8].numpy(), POSITIONS)
    assert batch.positions[:, 8:].tolist() == [[7, 10, 0, 0]] * 3
    assert batch.ids[:8].tolist() == [5, 9, 9, 9, 9, 6, 7, 8]
    assert batch.decode_lens.tolist() == [11, 11]  # what a row sees is counted in tokens


def test_without_positions_every_row_follows_its_own_delta() -> None:
    rows = rows_of(RowInit(4, position_delta=-3), RowInit(5, position_delta=2), length=10)
    new = [RowInit(0, position_delta=1), RowInit(1)]
    batch = built(plan(ext_positions=None, new_rows=new, decode_rows=i32([4, 5])), rows, min_tokens=11)
    assert batch.positions.tolist() == [1, 2, 3, 4, 5, 6, 0, 1, 7, 12, 0]
    assert batch.slots[8:10].tolist() == rows.slots(np.array([4, 5]), np.array([10, 10])).tolist()

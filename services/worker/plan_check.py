"""Refuse plans that would read or write outside the rows, the pool or the context.

A plan comes over the bus and may be wrong in any way; nothing of it is applied before it passed here. Vectorised
over rows and tokens: a pure decode plan costs a few comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from services.worker.rows import I64, Rows
from shared.errors import InvalidRequest
from shared.messages.step import RowInit, StepPlan

MAX_STOP_IDS = 128
NO_MEDIA: Mapping[int, int] = MappingProxyType({})
_NONE: I64 = np.zeros(0, np.int64)
_NO_MEDIA: I64 = np.zeros((0, 4), np.int64)
_NO_MEDIA.flags.writeable = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must stay within."""

    num_pages: int
    context_length: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Work:
    """The arrays of a checked plan as int64, absent ones empty. Letters as in `shared.messages.step`."""

    new_rows: list[RowInit]
    page_rows: I64
    page_starts: I64
    page_lens: I64
    ext_rows: I64
    ext_starts: I64
    ext_lens: I64
    ext_tokens: I64
    ext_sample: I64
    ext_lp_starts: I64
    ext_next: I64
    ext_forced: I64
    decode_rows: I64
    masked_rows: I64
    ext_positions: I64 | None = None
    """[3, X]"""
    ext_media: I64 = field(default_factory=lambda: _NO_MEDIA)
    """[N, 4]"""
    drop_media: I64 = field(default_factory=lambda: _NONE)

    @property
    def has_media(self) -> bool:
        """Whether the step is more than ids at positions that follow from their index."""
        return self.ext_positions is not None or len(self.ext_media) > 0


def check_plan(
    plan: StepPlan,
    rows: Rows,
    limits: Limits,
    last_decode_rows: I64,
    media_tokens: Mapping[int, int] = NO_MEDIA,
) -> Work:
    """A plan in the form the engine works with.

    Args:
        last_decode_rows: what `decode_rows=None` stands for.
        media_tokens: slots of images and videos that are at hand, and the tokens of each.

    Raises:
        InvalidRequest: saying which array is wrong and how.
    """
    ext_rows = _array(plan.ext_rows)
    lp = plan.ext_lp_starts is not None
    work = Work(
        new_rows=plan.new_rows,
        page_rows=_array(plan.page_rows),
        page_starts=_array(plan.page_starts),
        page_lens=_array(plan.page_lens),
        ext_rows=ext_rows,
        ext_starts=_array(plan.ext_starts),
        ext_lens=_array(plan.ext_lens),
        ext_tokens=_array(plan.ext_tokens),
        ext_sample=_array(plan.ext_sample),
        ext_lp_starts=_array(plan.ext_lp_starts) if lp else np.full_like(ext_rows, -1),
        ext_next=_array(plan.ext_next) if lp else np.full_like(ext_rows, -1),
        ext_forced=np.zeros_like(ext_rows) if plan.ext_forced is None else _array(plan.ext_forced),
        decode_rows=last_decode_rows if plan.decode_rows is None else _array(plan.decode_rows),
        masked_rows=_array(plan.masked_rows),
        ext_positions=None if plan.ext_positions is None else _array(plan.ext_positions, 2),
        ext_media=_NO_MEDIA if plan.ext_media is None else _array(plan.ext_media, 2),
        drop_media=_array(plan.drop_media),
    )
    _check_new_rows(work.new_rows, rows.max_rows, limits.vocab_size, limits.context_length)
    pages, lengths, has_token = _state_after_pages(work, rows, limits)
    deltas = _position_deltas(work.new_rows, rows)
    capacity = np.minimum(pages * rows.page_size, limits.context_length - np.maximum(deltas, 0))
    _check_extends(work, rows, limits, capacity)
    _check_media(work, limits, media_tokens)
    _check_decodes(work, rows, lengths, has_token, capacity)
    if work.ext_positions is None:
        _require(bool((work.ext_starts + deltas[work.ext_rows] >= 0).all()), "an extend row's position is negative")
    _require(bool((lengths + deltas)[work.decode_rows].min(initial=0) >= 0), "a decode row's position is negative")
    if len(work.masked_rows):
        sampled = np.concatenate((work.ext_rows[work.ext_sample != 0], work.decode_rows))
        _require(bool(np.isin(work.masked_rows, sampled).all()), "a masked row is not sampled")
        _require(len(np.unique(work.masked_rows)) == len(work.masked_rows), "a row is masked twice")
    return work


def _array(values: object, dims: int = 1) -> I64:
    if values is None:
        return _NONE
    out = np.asarray(values)
    _require(out.ndim == dims, f"an array of {out.ndim} dimensions where {dims} are wanted")
    return out.astype(np.int64)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidRequest(f"plan: {message}")


def _within(name: str, values: I64, low: int, stop: int) -> None:
    if len(values) and not (values.min() >= low and values.max() < stop):
        bad = values[(values < low) | (values >= stop)][0]
        raise InvalidRequest(f"plan: {name} {bad} is not in {low}..{stop - 1}")


def _check_new_rows(inits: list[RowInit], max_rows: int, vocab: int, context: int) -> None:
    for init in inits:
        _require(0 <= init.row < max_rows, f"new row {init.row} is not in 0..{max_rows - 1}")
        _require(init.temperature >= 0, f"new row {init.row}: temperature {init.temperature} is negative")
        _require(init.repetition_penalty > 0, f"new row {init.row}: repetition_penalty must be positive")
        _require(abs(init.position_delta) <= context, f"new row {init.row}: position_delta {init.position_delta}")
        _require(init.num_generated >= 0 and init.min_new_tokens >= 0, f"new row {init.row}: a negative count")
        _require(len(init.stop_ids) <= MAX_STOP_IDS, f"new row {init.row}: over {MAX_STOP_IDS} stop_ids")
        for name, ids in (("stop_ids", init.stop_ids), ("history_ids", init.history_ids),
                          ("output_ids", init.output_ids)):  # fmt: skip
            _within(f"new row {init.row}: {name}", np.array(ids, np.int64), 0, vocab)
        for key in init.logit_bias:
            _require(key.isascii() and key.isdigit() and len(key) < 11 and int(key) < vocab,
                     f"new row {init.row}: logit_bias id {key!r} is outside the vocabulary of {vocab}")  # fmt: skip


def _state_after_pages(work: Work, rows: Rows, limits: Limits) -> tuple[I64, I64, np.ndarray]:
    """Pages, length and having a token of every row once `new_rows` and page runs are applied."""
    pages, lengths, has_token = rows.num_pages, rows.lengths, rows.has_token
    if work.new_rows:
        new = [init.row for init in work.new_rows]
        _require(len(set(new)) == len(new), "a row is given away twice")
        pages, lengths, has_token = pages.copy(), lengths.copy(), has_token.copy()
        pages[new], lengths[new], has_token[new] = 0, 0, False
    if len(work.page_rows) or len(work.page_starts) or len(work.page_lens):
        count = len(work.page_rows)
        _require(len(work.page_starts) == len(work.page_lens) == count, "page_rows, page_starts, page_lens differ")
        _within("page_rows", work.page_rows, 0, rows.max_rows)
        _within("page_lens", work.page_lens, 1, limits.num_pages + 1)
        _within("page_starts", work.page_starts, 1, limits.num_pages + 1)
        _within("last page of a run", work.page_starts + work.page_lens - 1, 1, limits.num_pages + 1)
        pages = pages.copy()
        np.add.at(pages, work.page_rows, work.page_lens)
        _within("pages of a row", pages[work.page_rows], 0, rows.max_pages_per_row + 1)
    return pages, lengths, has_token


def _check_extends(work: Work, rows: Rows, limits: Limits, capacity: I64) -> None:
    count = len(work.ext_rows)
    for name in ("ext_starts", "ext_lens", "ext_sample", "ext_lp_starts", "ext_next", "ext_forced"):
        got = len(getattr(work, name))
        _require(got == count, f"{name} has {got} entries for {count} extend rows")
    _within("ext_rows", work.ext_rows, 0, rows.max_rows)
    _require(len(np.unique(work.ext_rows)) == count, "a row is extended twice")
    _within("ext_lens", work.ext_lens, 1, limits.context_length + 1)
    _within("ext_starts", work.ext_starts, 0, limits.context_length)
    total = int(work.ext_lens.sum())
    _require(len(work.ext_tokens) == total, f"{len(work.ext_tokens)} ext_tokens for ext_lens of {total}")
    _within("ext_tokens", work.ext_tokens, 0, limits.vocab_size)
    _within("ext_next", work.ext_next, -1, limits.vocab_size)
    _require(bool((work.ext_forced >= 0).all() and (work.ext_forced <= work.ext_lens).all()),
             "ext_forced is not in 0..ext_lens")  # fmt: skip
    _check_room(work.ext_rows, work.ext_starts + work.ext_lens, capacity)


def _position_deltas(inits: list[RowInit], rows: Rows) -> I64:
    """[max_rows] what is added to each row's indices to give its rotary positions."""
    deltas: I64 = rows.position_delta.host
    if inits:
        deltas = deltas.copy()
        deltas[[init.row for init in inits]] = [init.position_delta for init in inits]
    return deltas


def _check_media(work: Work, limits: Limits, media_tokens: Mapping[int, int]) -> None:
    total = len(work.ext_tokens)
    if work.ext_positions is not None:
        _require(
            work.ext_positions.shape == (3, total), f"ext_positions is {work.ext_positions.shape}, not 3 x {total}"
        )
        _within("ext_positions", work.ext_positions.ravel(), 0, limits.context_length)
    _require(work.ext_media.shape[1] == 4, f"ext_media is {work.ext_media.shape}, not N x 4")
    for at, count, slot, first in work.ext_media.tolist():
        _require(at >= 0 and count >= 1 and at + count <= total, f"media at tokens {at}..{at + count - 1} of {total}")
        there = media_tokens.get(slot)
        _require(there is not None, f"media slot {slot} is not staged")
        assert there is not None
        _require(0 <= first <= there - count, f"rows {first}..{first + count - 1} of media of {there} tokens")


def _check_decodes(work: Work, rows: Rows, lengths: I64, has_token: np.ndarray, capacity: I64) -> None:
    decode = work.decode_rows
    _within("decode_rows", decode, 0, rows.max_rows)
    _require(len(np.unique(decode)) == len(decode), "a row is decoded twice")
    _require(not len(np.intersect1d(decode, work.ext_rows)), "a row is both extended and decoded")
    without = decode[~has_token[decode]]
    _require(not len(without), f"row {without[:1]} is decoded but has no sampled token")
    _check_room(decode, lengths[decode] + 1, capacity)


def _check_room(rows: I64, ends: I64, capacity: I64) -> None:
    over = ends > capacity[rows]
    if over.any():
        row, end = rows[over][0], ends[over][0]
        raise InvalidRequest(f"plan: row {row} would hold {end} tokens, its pages and the context {capacity[row]}")

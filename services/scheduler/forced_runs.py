"""Constrained rows in the step loop: runs that a grammar forces become extend rows, and steps under way get masks.

A row that decodes feeds its newest token, which may not be known yet. Where the grammar has only one way to go on, that
token and the ones after it are known before they are sampled: they are fed together, as a prompt's chunk is, and the
step samples what comes behind them. Jump-forward decoding, so a forced run of any length costs one step.

Source of the idea: compressed FSM and jump-forward decoding, Zheng et al. 2024 (SGLang).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from services.scheduler.constraint import CONTEXT_TOKENS, Constraint
from services.scheduler.grammar import GrammarOverrun
from services.scheduler.plan_draft import Extend, InFlight, PlanDraft
from services.scheduler.prompt_media import words_behind_media
from services.scheduler.request import Req
from shared import messages as m

if TYPE_CHECKING:
    from services.scheduler.engine import Engine

I32 = npt.NDArray[np.int32]


def take(engine: Engine, draft: PlanDraft, candidates: I32, room: int) -> I32:
    """Put the forced runs of decoding rows into the plan; returns the rows that take an ordinary step.

    Where pages are short, runs are left to be sampled token by token.

    Args:
        room: tokens that the step may compute.
    """
    pool, rows, size = engine.pool, engine.pool.rows, engine.pool.page_size
    runs: list[tuple[int, int]] = []
    for row in candidates[rows.constrained[candidates]].tolist():
        ahead = _forced(engine, row) - int(rows.out_sent[row] - rows.out_known[row])
        if 0 < ahead < room - len(candidates):
            runs.append((row, ahead))
            room -= ahead
    if not runs:
        return candidates
    at = np.array([row for row, _ in runs], np.int32)
    counts = np.array([ahead + 1 for _, ahead in runs], np.int32)
    pages = np.maximum(-(-(rows.disp_len[at] + counts) // size) - rows.num_pages[at], 0)
    others = candidates[~np.isin(candidates, at)]
    growing = int((rows.disp_len[others] == rows.num_pages[others] * size).sum())
    if int(pages.sum()) + growing > pool.available_pages:
        return candidates
    for row, count, more in zip(at.tolist(), counts.tolist(), pages.tolist(), strict=True):
        if more:
            fresh = pool.alloc(more)
            rows.append_pages(row, fresh, private=True)
            draft.add_pages(np.full(more, row, np.int32), fresh)
        draft.extends.append(_extend(engine, row, count))
    return others


def look_ahead(engine: Engine, req: Req) -> None:
    """Find the run that must follow a row's known tokens."""
    rows, row = engine.pool.rows, req.row
    assert req.constraint is not None
    constraint, known = req.constraint, int(rows.known_len[row])
    most = int(rows.max_new[row] - rows.out_known[row]) - 1
    context = words_behind_media(rows.tokens[row, max(0, known - CONTEXT_TOKENS) : known]).tolist()
    rows.slow[row] = constraint.slow
    rows.waiting[row] = constraint.busy > 0 or (constraint.slow and not constraint.caught_up)
    if rows.waiting[row]:
        constraint.busy += 1
        engine.aside.start(
            lambda: constraint.catch_up(context, most, req.stop_ids), lambda: _caught_up(engine, req, constraint)
        )
    else:
        constraint.look_ahead(context, most, req.stop_ids)
        rows.expect(row, known, constraint.forced)


def _caught_up(engine: Engine, req: Req, constraint: Constraint) -> None:
    """A slow grammar has caught up with a row, which the request may not have any more."""
    constraint.busy -= 1
    rows, row = engine.pool.rows, req.row
    if row >= 0 and rows.reqs[row] is req and not req.done:
        rows.expect(row, int(rows.known_len[row]), constraint.forced)
        rows.waiting[row] = rows.out_sent[row] > rows.out_known[row]


def masks(engine: Engine, record: InFlight) -> list[m.StepMasks]:
    """The masks of a plan under way, once they are known for all its rows."""
    if not record.masked:
        return []
    wanted: list[tuple[int, int | bytes | None]] = []
    known = engine.pool.rows.out_known
    for masked in record.masked:
        req = masked.req
        if req.done or req.constraint is None:
            wanted.append((masked.row, None))
            continue
        try:
            allowed = req.constraint.allowed(masked.number - 1 - int(known[masked.row]))
        except GrammarOverrun as fault:
            engine.fail(req, fault)
        else:
            if allowed is None:
                return []
        wanted.append((masked.row, None if req.done else allowed))
    record.masked.clear()
    return engine.mask_bank.message(engine.info.engine_id, engine.session, record.seq, wanted)


def _forced(engine: Engine, row: int) -> int:
    req = engine.pool.rows.reqs[row]
    assert req is not None
    return len(req.constraint.forced) if req.constraint is not None else 0


def _extend(engine: Engine, row: int, count: int) -> Extend:
    rows, req = engine.pool.rows, engine.pool.rows.reqs[row]
    assert req is not None
    start = int(rows.disp_len[row])
    rows.disp_len[row] += count
    rows.out_sent[row] += count
    rows.waiting[row] = rows.slow[row]
    engine.totals.forced_tokens += count - 1
    logprobs = start + 1 if req.return_logprob else -1
    return Extend(req, row, start, count, True, True, logprobs, forced=count - 1)

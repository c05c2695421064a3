"""Applying a worker's answer: new tokens into the rows, ends recognised, rows and pages released."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from services.scheduler import forced_runs
from services.scheduler.plan_draft import Extend, InFlight
from services.scheduler.token_logprobs import TokenLogprobs
from shared import messages as m
from shared.errors import RhizomeError, WireError
from shared.messages.generation import LENGTH, RUNNING, STOPPED

if TYPE_CHECKING:
    from services.scheduler.engine import Engine

I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]


def apply(engine: Engine, result: m.StepResult) -> None:
    """Apply the answer to the oldest plan of `engine`.

    Rows that ended in the meantime (their end was learned one step late, or the client left) are skipped.

    Raises:
        WireError: out of sequence, or not the shape that the plan asked for.
    """
    record = engine.in_flight[0] if engine.in_flight else None
    if record is None or result.seq != record.seq or len(result.tokens) != len(record.sampled):
        raise WireError(
            f"engine {engine.info.name}: answer to step {result.seq} with {len(result.tokens)} tokens, expected "
            f"step {record.seq if record else 'none'} with {len(record.sampled) if record else 0}"
        )
    engine.in_flight.popleft()
    rows = engine.pool.rows
    now = engine.clock()
    engine.stages.seconds["wait"] += now - max(record.sent_s, engine.answered_s)
    engine.answered_s = now
    engine.stepped(result.timing)
    rows.in_flight[record.touched] -= 1
    forced = {} if result.prompt_counts is None else _prompt_logprobs(engine, record, result)
    _follow_grammars(engine, record, result.tokens)
    _tokens(engine, record, result, forced)
    _prompts_without_output(engine, record)
    leaving = record.touched[(rows.in_flight[record.touched] == 0) & ~rows.decoding[record.touched]]
    for row in leaving.tolist():
        engine.release_if_idle(row)


def _follow_grammars(engine: Engine, record: InFlight, tokens: I32) -> None:
    """Tell the grammars of constrained rows what has followed; a request whose grammar refuses it has failed."""
    rows = engine.pool.rows
    constrained = rows.constrained[record.sampled] & ~rows.done[record.sampled]
    for i in np.flatnonzero(constrained).tolist():
        row = int(record.sampled[i])
        req, start = rows.reqs[row], int(rows.known_len[row])
        assert req is not None
        assert req.constraint is not None
        lead = rows.tokens[row, start : start + int(record.lead[i])].tolist()
        try:
            req.constraint.took([*lead, int(tokens[i])])
        except RhizomeError as fault:
            engine.fail(req, fault)


def _tokens(engine: Engine, record: InFlight, result: m.StepResult, forced: dict[int, TokenLogprobs]) -> None:
    rows = engine.pool.rows
    keep = np.flatnonzero(~rows.done[record.sampled])
    if len(keep) == 0:
        return
    live, tokens, counts = record.sampled[keep], result.tokens[keep], record.lead[keep] + 1
    rows.known_len[live] += counts
    rows.out_known[live] += counts
    rows.tokens[live, rows.known_len[live] - 1] = tokens
    finish = _finish_codes(engine, live, tokens)
    cached = rows.cached_report[live]
    rows.cached_report[live] = -1
    engine.totals.generation_tokens += int(counts.sum())
    sampled = TokenLogprobs.of(result.logprobs, result.top_ids, result.top_logprobs, keep)
    if len(tokens) != counts.sum():
        every = np.repeat(live, counts)
        tokens = rows.tokens[every, np.repeat(rows.known_len[live] - counts, counts) + _within(counts)]
        sampled = None if sampled is None else sampled.behind(forced, live, counts)
    engine.outbox.tokens(
        rows.owner[live], rows.handle[live], counts, rows.out_known[live], tokens, finish, cached, sampled
    )
    ended = live[finish != RUNNING]
    for row in ended.tolist():
        _finished(engine, row)
    for row in live[rows.constrained[live] & (finish == RUNNING)].tolist():
        req = rows.reqs[row]
        assert req is not None
        forced_runs.look_ahead(engine, req)


def _finish_codes(engine: Engine, live: I32, tokens: I32) -> U8:
    """[N] RUNNING, LENGTH or STOPPED. Only tokens that are some request's stop id cost a look at their request."""
    rows = engine.pool.rows
    finish = np.where(rows.out_known[live] >= rows.max_new[live], LENGTH, RUNNING).astype(np.uint8)
    in_range = (tokens >= 0) & (tokens < len(engine.stop_lookup))
    hits = np.flatnonzero(in_range & engine.stop_lookup[np.where(in_range, tokens, 0)])
    for i in hits.tolist():
        req = rows.reqs[int(live[i])]
        assert req is not None
        if int(tokens[i]) in req.stop_ids:
            finish[i] = STOPPED
    return finish


def _prompts_without_output(engine: Engine, record: InFlight) -> None:
    """Requests with max_new_tokens 0 end with their prompt."""
    rows = engine.pool.rows
    for extend in record.extends:
        if extend.ends_prompt and not extend.sample and not extend.req.done and not extend.req.retracting:
            row = extend.row
            engine.outbox.end(extend.req, LENGTH, cached=int(rows.cached_report[row]), total=int(rows.out_known[row]))
            _finished(engine, row)


def _finished(engine: Engine, row: int) -> None:
    req = engine.pool.rows.reqs[row]
    assert req is not None
    engine.totals.finished += 1
    engine.end(req)


def _prompt_logprobs(engine: Engine, record: InFlight, result: m.StepResult) -> dict[int, TokenLogprobs]:
    """Deliver what prompts asked for; returns, by row, what belongs to forced tokens of the output."""
    assert result.prompt_counts is not None
    assert result.prompt_logprobs is not None
    rows, at, forced = engine.pool.rows, 0, {}
    for extend, count in zip(record.extends, result.prompt_counts.tolist(), strict=True):
        part = slice(at, at + count)
        at += count
        if extend.logprob_start < 0 or extend.req.done:
            continue
        values = result.prompt_logprobs[part]
        top_ids = None if result.prompt_top_ids is None else result.prompt_top_ids[part]
        top = None if result.prompt_top_logprobs is None else result.prompt_top_logprobs[part]
        if extend.forced:
            forced[extend.row] = TokenLogprobs(values, top_ids, top)
            continue
        if extend.start == 0 and extend.logprob_start == 0:
            values, top_ids, top = _with_first_position(values, top_ids, top)
        if len(values):
            cached = int(rows.cached_report[extend.row])
            rows.cached_report[extend.row] = -1
            total = int(rows.out_known[extend.row])
            engine.outbox.prompt_logprobs(extend.req, cached, total, values, top_ids, top)
        _advance(extend)
    return forced


def _within(counts: I32) -> I32:
    """0..counts[0]-1, 0..counts[1]-1, ... as one array."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - counts, counts).astype(np.int32)


def _advance(extend: Extend) -> None:
    """After a retraction only positions that were not delivered are asked for again."""
    req, next_position = extend.req, extend.start + extend.count + (0 if extend.ends_prompt else 1)
    req.logprob_start = -1 if extend.ends_prompt else max(req.logprob_start, next_position)


def _with_first_position(
    values: npt.NDArray[np.float32], top_ids: I32 | None, top: npt.NDArray[np.float32] | None
) -> tuple[npt.NDArray[np.float32], I32 | None, npt.NDArray[np.float32] | None]:
    """Nothing predicts the first token of a prompt: its logprob is NaN."""
    nan = np.full(1, np.nan, np.float32)
    if top_ids is not None and top is not None:
        width = top_ids.shape[1]
        top_ids = np.concatenate((np.full((1, width), -1, np.int32), top_ids))
        top = np.concatenate((np.full((1, width), np.nan, np.float32), top))
    return np.concatenate((nan, values)), top_ids, top

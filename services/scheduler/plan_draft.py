"""A `StepPlan` in the making, and what the scheduler remembers of it until it is answered."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.scheduler.media_bank import MediaBank
from services.scheduler.page_allocator import page_runs
from services.scheduler.request import Req
from services.scheduler.rows import RowTable
from shared import messages as m

I32 = npt.NDArray[np.int32]
NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Extend:
    """One extend row of a plan: tokens [start, start + count) of a request, of its prompt or forced by its grammar."""

    req: Req
    row: int
    start: int
    count: int
    sample: bool
    ends_prompt: bool
    logprob_start: int
    forced: int = 0
    """Last tokens of the chunk that a grammar forced: output, not prompt."""


@dataclass(frozen=True, slots=True)
class Masked:
    """A row of a plan that a grammar constrains."""

    row: int
    req: Req
    number: int
    """Of the token that the plan samples, among the request's output: 1, 2, 3, ..."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A plan that was sent and not answered yet."""

    seq: int
    sampled: I32
    """[S] rows in the order of the result's tokens"""
    lead: I32
    """[S] forced tokens that the row gets before its sampled one"""
    touched: I32
    """[E + D] distinct rows"""
    extends: list[Extend]
    sent_s: float
    masked: list[Masked]
    """Rows whose masks were not sent yet."""


class PlanDraft:
    """Collects one step; `finish` makes the message. Lives for one call of `Engine.build`."""

    def __init__(self) -> None:
        self.new_rows: list[m.RowInit] = []
        self.extends: list[Extend] = []
        self.decode = NONE
        self._page_rows: list[I32] = []
        self._pages: list[I32] = []

    @property
    def empty(self) -> bool:
        return not self.extends and len(self.decode) == 0

    def add_pages(self, rows: I32, pages: I32) -> None:
        """`pages[i]` is appended to the page table of `rows[i]`."""
        if len(pages):
            self._page_rows.append(rows)
            self._pages.append(pages)

    def finish(
        self, session: str, seq: int, table: RowTable, media: MediaBank, last_decode: I32, now_s: float
    ) -> tuple[m.StepPlan, InFlight]:
        """The message, and the record of it. `last_decode` = the decode rows of the plan before."""
        drops = media.take_drops()
        ext_rows = np.array([e.row for e in self.extends], np.int32)
        sampled_ext = np.array([e.row for e in self.extends if e.sample], np.int32)
        page_rows, page_starts, page_lens = (
            page_runs(np.concatenate(self._page_rows), np.concatenate(self._pages)) if self._pages else (None,) * 3
        )
        sampled = np.concatenate((sampled_ext, self.decode))
        masked = sampled[table.constrained[sampled]]
        same = len(self.decode) == len(last_decode) and bool((self.decode == last_decode).all())
        plan = m.StepPlan(
            engine_id=media.engine_id, session=session, seq=seq, new_rows=self.new_rows,
            page_rows=page_rows, page_starts=page_starts, page_lens=page_lens,
            decode_rows=None if same and seq else self.decode, masked_rows=masked if len(masked) else None,
            drop_media=np.array(drops, np.int32) if drops else None,
        )  # fmt: skip
        record = InFlight(
            seq=seq,
            sampled=sampled,
            lead=np.concatenate(
                (np.array([e.forced for e in self.extends if e.sample], np.int32), np.zeros(len(self.decode), np.int32))
            ),
            touched=np.concatenate((ext_rows, self.decode)),
            extends=self.extends,
            sent_s=now_s,
            masked=[Masked(row, _owner(table, row), int(table.out_sent[row])) for row in masked.tolist()],
        )
        if self.extends:
            plan = self._with_extends(plan, ext_rows, table)
        if any(e.req.media is not None for e in self.extends):
            plan = self._with_media(plan, media)
        return plan, record

    def _with_extends(self, plan: m.StepPlan, ext_rows: I32, table: RowTable) -> m.StepPlan:
        lp_starts = ext_next = None
        if any(e.logprob_start >= 0 for e in self.extends):
            lp_starts = np.array([e.logprob_start for e in self.extends], np.int32)
            ext_next = np.array(
                [-1 if e.ends_prompt else table.tokens[e.row, e.start + e.count] for e in self.extends], np.int32
            )
        forced = np.array([e.forced for e in self.extends], np.int32)
        return dataclasses.replace(
            plan,
            ext_rows=ext_rows,
            ext_starts=np.array([e.start for e in self.extends], np.int32),
            ext_lens=np.array([e.count for e in self.extends], np.int32),
            ext_tokens=np.concatenate([table.tokens[e.row, e.start : e.start + e.count] for e in self.extends]),
            ext_sample=np.array([e.sample for e in self.extends], np.uint8),
            ext_lp_starts=lp_starts,
            ext_next=ext_next,
            ext_forced=forced if forced.any() else None,
        )

    def _with_media(self, plan: m.StepPlan, media: MediaBank) -> m.StepPlan:
        """Placeholders for the cache's ids of media, where their embeddings are, and positions of three dimensions."""
        assert plan.ext_tokens is not None
        tokens, ext_next = plan.ext_tokens.copy(), None if plan.ext_next is None else plan.ext_next.copy()
        runs: list[tuple[int, int, int, int]] = []
        three = any(e.req.media is not None and e.req.media.turns(e.start, e.count) for e in self.extends)
        positions = np.empty((3, len(tokens)), np.int32) if three else None
        at = 0
        for i, e in enumerate(self.extends):
            part = slice(at, at + e.count)
            prompt = e.req.media
            if prompt is not None:
                tokens[part] = prompt.ids(tokens[part], e.start)
                if ext_next is not None and ext_next[i] < -1:
                    ext_next[i : i + 1] = prompt.ids(ext_next[i : i + 1], e.start + e.count)
                runs += [(at + a, n, media.slot(key), first) for a, n, key, first in prompt.runs(e.start, e.count)]
            if positions is not None:
                along = np.arange(e.start, e.start + e.count, dtype=np.int32)
                positions[:, part] = along if prompt is None else prompt.positions_of(e.start, e.count)
            at += e.count
        return dataclasses.replace(
            plan, ext_tokens=tokens, ext_next=ext_next, ext_positions=positions,
            ext_media=np.array(runs, np.int32) if runs else None,
        )  # fmt: skip


def _owner(table: RowTable, row: int) -> Req:
    req = table.reqs[row]
    assert req is not None
    return req

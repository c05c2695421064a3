"""From waiting to running: who is admitted into this step.

A request is admitted when a row is free, its uncached prompt pages can be had now, and the tokens that all running
requests are expected to generate still fit beside it. The expectation is a ratio of what they may generate; it
falls slowly while all goes well and jumps up when a request had to be retracted.
Source: SGLang's prefill adder and new-token ratio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from services.scheduler import forced_runs
from services.scheduler.plan_draft import Extend, PlanDraft
from services.scheduler.prompt_media import PromptMedia
from services.scheduler.request import Req
from services.scheduler.rows import RowTable
from shared.errors import RhizomeError

if TYPE_CHECKING:
    from services.scheduler.engine import Engine

I32 = npt.NDArray[np.int32]
CLIP_NEW_TOKENS = 4096
"""Expected output of a request is taken as at most this many tokens."""
DEDUPE_MIN_TOKENS = 32
"""A request waits for another's prefill if that saves at least this many tokens."""
MAX_POSTPONED = 64
"""Requests that may be passed over in one step because another computes their prefix."""


class AdmissionBudget:
    """Expected share of max_new_tokens that running requests will still generate."""

    def __init__(self, conservativeness: float) -> None:
        self._init = min(0.7 * conservativeness, 1.0)
        self._floor = min(0.14 * self._init / 0.7, 1.0)
        self._decay = (self._init - self._floor) / 600
        self.ratio = self._init

    def decay(self) -> None:
        """One step without retraction."""
        self.ratio = max(self.ratio - self._decay, self._floor)

    def after_retraction(self, rows: RowTable) -> None:
        """Expect what the running requests have shown, with a margin."""
        live = ~rows.done
        generated, allowed = float(rows.out_known[live].sum()), float(rows.max_new[live].sum())
        self.ratio = min(max(self.ratio, (generated + 20.0 * live.sum()) / max(allowed, 1.0)), 1.0)

    def expected_tokens(self, rows: RowTable) -> float:
        """Tokens that the running rows are expected to add."""
        live = ~rows.done
        left = np.minimum(rows.max_new[live] - rows.out_sent[live], CLIP_NEW_TOKENS)
        return float(left.sum()) * self.ratio

    def expected_of(self, req: Req) -> float:
        return min(req.max_new_tokens - req.num_generated, CLIP_NEW_TOKENS) * self.ratio


class PromptsUnderWay:
    """Prompts that the plan in the making computes, found by the tokens that come after what is cached of them."""

    def __init__(self, engine: Engine, draft: PlanDraft) -> None:
        self._rows, self._page_size = engine.pool.rows, engine.pool.page_size
        self._share = not engine.config.disable_radix_cache
        self._prompts: dict[tuple[str, int, bytes], I32] = {}
        for extend in draft.extends:
            self.add(extend)

    def add(self, extend: Extend) -> None:
        prompt = self._rows.tokens[extend.row, : self._rows.prefill_len[extend.row]]
        cached = extend.start - extend.start % self._page_size
        if self._share and len(prompt) - cached >= DEDUPE_MIN_TOKENS:
            self._prompts[self._key(extend.req, prompt, cached)] = prompt

    def soon_cached(self, req: Req, cached: int) -> bool:
        """True if waiting for one of them saves this request enough tokens; `cached` are there already."""
        if not self._prompts or req.match_limit - cached < DEDUPE_MIN_TOKENS:
            return False
        other = self._prompts.get(self._key(req, req.ids, cached))
        return other is not None and bool((other[:cached] == req.ids[:cached]).all())

    def _key(self, req: Req, tokens: I32, cached: int) -> tuple[str, int, bytes]:
        return req.cache_salt, cached, tokens[cached : cached + DEDUPE_MIN_TOKENS].tobytes()


def admit(engine: Engine, draft: PlanDraft, room: int, now_s: float) -> None:
    """[walk 4] Admit waiting requests into the plan while rows, pages and the step's token budget last."""
    rows, pool = engine.pool.rows, engine.pool
    engine.budget.decay()
    if rows.free_rows == 0:
        return
    expected = engine.budget.expected_tokens(rows)
    with engine.stages.measure("order"):
        order = engine.queue.ordered(now_s, pool.match_len)
    under_way = PromptsUnderWay(engine, draft)
    engine.media.begin_round()
    postponed = 0
    for req in order:
        if room <= 0 or rows.free_rows == 0 or postponed > MAX_POSTPONED:
            return
        if under_way.soon_cached(req, pool.match_len(req)):
            postponed += 1
            continue
        if req.media is not None and not _has_media(engine, req, req.media):
            postponed += 1
            continue
        cached = pool.lock_prefix(req)
        pages = pool.pages_for(len(req.ids)) - len(cached)
        free_tokens = (pool.available_pages - pages) * pool.page_size - expected - engine.budget.expected_of(req)
        alone = rows.used_rows == 0
        if pages > pool.available_pages or (free_tokens < 0 and not alone):
            pool.unlock(req)
            return
        engine.queue.remove(req)
        room -= _start(engine, draft, req, cached, pages, room)
        under_way.add(draft.extends[-1])
        expected += engine.budget.expected_of(req)


def _has_media(engine: Engine, req: Req, media: PromptMedia) -> bool:
    """Whether the images and videos that must be computed are at hand; a request that cannot have them has failed."""
    try:
        return engine.media.ready(media.wanted(engine.pool.match_len(req)).values())
    except RhizomeError as fault:
        engine.fail(req, fault)
        return False


def _start(engine: Engine, draft: PlanDraft, req: Req, cached: I32, count: int, room: int) -> int:
    """Give the request a row and pages and put its first chunk into the plan; returns the chunk's tokens."""
    pool, rows = engine.pool, engine.pool.rows
    prefix_len = len(cached) * pool.page_size
    if req.cached_tokens < 0:
        req.cached_tokens = req.cached_untold = prefix_len
        engine.totals.admitted(req.prompt_len, prefix_len)
    fresh = pool.alloc(count)
    row = rows.take(req, engine.outbox.owner(req.tokenizer_id))
    if req.constraint is not None:
        forced_runs.look_ahead(engine, req)
    rows.append_pages(row, cached, private=False)
    rows.append_pages(row, fresh, private=True)
    pages = rows.page_table[row, : rows.num_pages[row]].copy()
    draft.new_rows.append(req.row_init(row))
    draft.add_pages(np.full(len(pages), row, np.int32), pages)
    rows.disp_len[row] = prefix_len
    req.admitted = engine.admitted(req)
    if req.media is not None:
        req.pinned = tuple(req.media.wanted(prefix_len))
        engine.media.pin(req.pinned)
    taken = engine.extend(draft, req, room)
    if not rows.decoding[row]:
        engine.prefilling.append(req)
    return taken

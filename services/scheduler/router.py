"""Which engine gets a request: cached prefix against load.

The cost of an engine is what the request would have to compute there plus a share of the tokens the engine already
has to carry; the cheapest wins. A long cached prefix thus attracts until its engine is clearly busier than another.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.scheduler.engine import Engine
from services.scheduler.request import Req

LOAD_WEIGHT = 0.25
"""Tokens of load that count as much as one token of prefill, inverted."""


def choose(engines: Iterable[Engine], req: Req) -> Engine | None:
    """The cheapest engine that takes requests and can hold this one, or None."""
    best, best_cost = None, float("inf")
    for engine in engines:
        if req.grammar is not None and not engine.info.mask_slots:
            continue
        if req.media is not None and not engine.info.media_bytes:
            continue
        if engine.info.state != "ready" or engine.capacity_tokens < req.prompt_len + req.max_new_tokens:
            continue
        cost = len(req.ids) - engine.pool.match_len(req) + LOAD_WEIGHT * engine.load_tokens
        if cost < best_cost:
            best, best_cost = engine, cost
    return best

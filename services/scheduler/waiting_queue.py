"""Requests that wait for one engine, and the order in which they are tried.

`fcfs`: by arrival. `priority`: higher first, then arrival. `lpm`: longest cached prefix first, so that a prefix is
used while it is there. Whatever the policy, retracted requests come first and nobody waits for ever: after the
starvation limit a request is served in order of arrival before all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from services.scheduler.config import SchedulePolicy
from services.scheduler.request import Req

LPM_WINDOW = 128
"""Prefixes are compared for that many of the longest-waiting requests; the rest follow by arrival."""


class WaitingQueue:
    """Mutated by its engine alone."""

    def __init__(self, policy: SchedulePolicy, starvation_limit_s: float) -> None:
        self._policy = policy
        self._starvation_limit_s = starvation_limit_s
        self._reqs: dict[int, Req] = {}  # by id(), in order of arrival; retracted ones in `_first`
        self._first: dict[int, Req] = {}
        self.tokens = 0
        """Of all waiting requests."""

    def __len__(self) -> int:
        return len(self._reqs) + len(self._first)

    def __iter__(self) -> Iterator[Req]:
        yield from self._first.values()
        yield from self._reqs.values()

    def push(self, req: Req) -> None:
        self._reqs[id(req)] = req
        self.tokens += len(req.ids)

    def push_first(self, req: Req) -> None:
        """A request that was running already: it has tokens and goes before all others, oldest first."""
        self._first[id(req)] = req
        self.tokens += len(req.ids)
        if len(self._first) > 1:
            self._first = {id(r): r for r in sorted(self._first.values(), key=lambda r: r.arrived_s)}

    def remove(self, req: Req) -> None:
        if self._reqs.pop(id(req), None) or self._first.pop(id(req), None):
            self.tokens -= len(req.ids)

    def take_all(self) -> list[Req]:
        out = list(self)
        self._reqs, self._first, self.tokens = {}, {}, 0
        return out

    def ordered(self, now_s: float, match_len: Callable[[Req], int]) -> list[Req]:
        """The order in which to try them now."""
        waiting = list(self._reqs.values())
        if self._policy == "fcfs" or len(waiting) < 2:
            return [*self._first.values(), *waiting]
        limit = now_s - self._starvation_limit_s
        starved = [r for r in waiting if r.queued_since_s < limit]
        rest = [r for r in waiting if r.queued_since_s >= limit]
        if self._policy == "priority":
            rest.sort(key=lambda r: (-r.priority, r.arrived_s))
        else:
            head, tail = rest[:LPM_WINDOW], rest[LPM_WINDOW:]
            rest = sorted(head, key=match_len, reverse=True) + tail  # stable: equals stay in order of arrival
        return [*self._first.values(), *starved, *rest]

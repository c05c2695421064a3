"""Demands for embeddings: who waits for which, which vision instance works on it, and what to ask again.

The state behind `service.py`, which sends and receives. A demand is asked again when its instance is lost or silent.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from shared import messages as m
from shared.errors import Unavailable, from_code

MAX_ASKS = 4
"""Instances that may be lost over the same media before these are taken for the cause."""
_ASKED_ENOUGH = (
    f"the images and videos were given to a vision instance {MAX_ASKS} times and none has answered: send fewer or "
    "smaller ones, or look for the reason in the vision service's log"
)


@dataclass(slots=True)
class Demand:
    """The media of one request. Lives until they are encoded."""

    handle: int
    rid: str
    sources: list[m.MediaSource]
    answer: asyncio.Future[list[m.EncodedMedia]]
    vision_id: str = ""
    """Who works on it; empty while nobody has accepted it."""
    asks: int = 0
    """How often somebody has accepted it."""
    accepted_s: float = 0.0

    def accepted(self, vision_id: str, now_s: float) -> None:
        """Somebody works on it."""
        self.vision_id, self.accepted_s = vision_id, now_s
        self.asks += 1

    @property
    def given_up(self) -> bool:
        """Nobody waits for it any more, although it was not answered."""
        return self.answer.cancelled()


class Demands:
    """All demands of this tokenizer."""

    def __init__(self) -> None:
        self._by_handle: dict[int, Demand] = {}
        self._handles = itertools.count()

    def open(self, rid: str, sources: list[m.MediaSource]) -> Demand:
        """A new demand; `close` it whatever happens."""
        demand = Demand(next(self._handles), rid, sources, asyncio.get_running_loop().create_future())
        self._by_handle[demand.handle] = demand
        return demand

    def close(self, demand: Demand) -> None:
        """Forget a demand; `given_up` if it has no answer."""
        self._by_handle.pop(demand.handle, None)
        demand.answer.cancel()

    def encoded(self, msg: m.MediaEncoded) -> None:
        """A vision instance has done its work, or says why not."""
        demand = self._by_handle.get(msg.handle)
        if demand is None or demand.answer.done():
            return
        if msg.error is not None:
            demand.answer.set_exception(from_code(msg.error.code, msg.error.message, msg.error.param))
        elif len(msg.media) != len(demand.sources):
            wanted = len(demand.sources)
            demand.answer.set_exception(Unavailable(f"{msg.vision_id} encoded {len(msg.media)} of {wanted} items"))
        else:
            demand.answer.set_result(msg.media)

    def lost(self, vision_id: str) -> list[Demand]:
        """An instance is gone: what it was working on, to be asked again."""
        return self._unanswered(lambda demand: demand.vision_id == vision_id)

    def overdue(self, now_s: float, patience_s: float) -> list[Demand]:
        """What was accepted long ago and not answered: the answer may be lost."""
        return self._unanswered(lambda demand: demand.vision_id != "" and now_s - demand.accepted_s > patience_s)

    def _unanswered(self, chosen: Callable[[Demand], bool]) -> list[Demand]:
        out = []
        for demand in self._by_handle.values():
            if chosen(demand) and not demand.answer.done():
                demand.vision_id = ""
                if demand.asks < MAX_ASKS:
                    out.append(demand)
                else:
                    demand.answer.set_exception(Unavailable(_ASKED_ENOUGH))
        return out

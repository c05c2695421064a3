"""Embeddings of images and videos at an engine's ranks: asked for ahead of the prompts that need them.

A prompt is computed only when all ranks have what it needs (`ready`), so no step ever waits or fails for an image.
What running prompts need is pinned; the rest stays, least recently used first to go, while the budget lasts.
Knows keys, slots and ranks, nothing of rows or the bus: `take` gives what is to be sent.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shared import messages as m
from shared.errors import InvalidRequest, MediaLost

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ASK_AGAIN_S = 5.0
"""Messages may be lost; an engine that is asked twice answers twice."""


@dataclass(slots=True)
class _Held:
    """One item at the ranks, or on its way there."""

    ref: m.EmbeddingRef
    slot: int
    num_bytes: int
    lacking: set[int]
    """Ranks that have not said that they have it."""
    asked_s: float
    pins: int = 0
    round: int = 0
    """Of admission in which it was last wanted."""


@dataclass(slots=True)
class MediaBank:
    """Lives as long as an engine's session; the engine alone mutates it."""

    engine_id: str
    session: str
    tp_size: int
    budget_bytes: int
    clock: Callable[[], float]
    _held: OrderedDict[str, _Held] = field(default_factory=OrderedDict)  # by key, least recently wanted first
    _lost: set[str] = field(default_factory=set)
    _asks: list[_Held] = field(default_factory=list)
    _drops: list[int] = field(default_factory=list)
    _slots: itertools.count[int] = field(default_factory=itertools.count)
    _round: int = 0
    _used_bytes: int = 0
    _dropped_bytes: int = 0
    """Of what ranks are still to be told to drop."""

    def begin_round(self) -> None:
        """Requests are about to be looked at in order: what an earlier one wants, a later one may not push out."""
        self._round += 1

    def ready(self, refs: Iterable[m.EmbeddingRef]) -> bool:
        """Whether all ranks have these; they are asked for if not.

        Raises:
            MediaLost: nobody has one of them any more.
            InvalidRequest: together they are over the budget.
        """
        wanted = {ref.key: ref for ref in refs}
        if lost := self._lost & wanted.keys():
            self._lost -= lost
            raise MediaLost("the embeddings of an image were lost before they were used: send the request again")
        total = sum(_bytes(ref) for ref in wanted.values())
        if total > self.budget_bytes:
            raise InvalidRequest(
                f"the request's images take {total:,} bytes as embeddings, the engine holds {self.budget_bytes:,}: "
                "send fewer or smaller ones or raise --media-staging-bytes"
            )
        now, there = self.clock(), True
        for key in wanted:
            if (held := self._held.get(key)) is not None:
                held.round = self._round
                self._held.move_to_end(key)
        for key, ref in wanted.items():
            held = self._held.get(key)
            if held is None:
                there = False
                if not self._make_room(_bytes(ref)):
                    return False
                held = _Held(ref, next(self._slots), _bytes(ref), set(range(self.tp_size)), now, round=self._round)
                self._held[key] = held
                self._used_bytes += held.num_bytes
                self._asks.append(held)
            elif held.lacking:
                there = False
                if now - held.asked_s > ASK_AGAIN_S:
                    held.asked_s = now
                    self._asks.append(held)
        return there

    def pin(self, keys: Iterable[str]) -> None:
        """Keep these, which are ready, until `unpin`."""
        for key in keys:
            self._held[key].pins += 1

    def unpin(self, keys: Iterable[str]) -> None:
        """One who pinned these needs them no more."""
        for key in keys:
            self._held[key].pins -= 1

    @property
    def pinned(self) -> int:
        """Items that must stay."""
        return sum(held.pins > 0 for held in self._held.values())

    def slots(self) -> set[int]:
        """What ranks have, or are about to have: told to be staged and not yet told to be dropped."""
        return {held.slot for held in self._held.values()} | set(self._drops)

    def slot(self, key: str) -> int:
        """How plans name a pinned item."""
        return self._held[key].slot

    def staged(self, answer: m.MediaStaged) -> None:
        """A rank has some, or cannot have them."""
        by_slot = {held.slot: held for held in self._held.values()}
        for slot in answer.slots:
            if slot in by_slot:
                by_slot[slot].lacking.discard(answer.tp_rank)
        for slot in answer.missing:
            held = by_slot.get(slot)
            if held is not None and not held.pins:
                self._lost.add(held.ref.key)
                self._remove(held)

    def take(self) -> m.StageMedia | None:
        """What is to be asked of the ranks now."""
        if not self._asks:
            return None
        asks, self._asks = self._asks, []
        asks = [held for held in asks if self._held.get(held.ref.key) is held]
        if not asks:
            return None
        return m.StageMedia(self.engine_id, self.session, [h.slot for h in asks], [h.ref for h in asks])

    @property
    def crowded(self) -> bool:
        """Whether ranks will hold more than the budget unless a plan tells them what to drop."""
        return self._dropped_bytes > 0 and self._used_bytes + self._dropped_bytes > self.budget_bytes

    def take_drops(self) -> list[int]:
        """Slots that no plan from now on names."""
        drops, self._drops, self._dropped_bytes = self._drops, [], 0
        return drops

    def _make_room(self, num_bytes: int) -> bool:
        for held in list(self._held.values()):
            if self._used_bytes + num_bytes <= self.budget_bytes:
                break
            if not held.pins and held.round != self._round:
                self._remove(held)
        return self._used_bytes + num_bytes <= self.budget_bytes

    def _remove(self, held: _Held) -> None:
        del self._held[held.ref.key]
        self._used_bytes -= held.num_bytes
        self._dropped_bytes += held.num_bytes
        self._drops.append(held.slot)


def _bytes(ref: m.EmbeddingRef) -> int:
    return ref.tokens * ref.width * DTYPE_BYTES.get(ref.dtype, 4)

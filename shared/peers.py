"""Who is there: a registry of service instances, fed by heartbeats and goodbyes.

Used by the gateway (readiness, owner of a stream lost), the tokenizer (scheduler lost) and the scheduler
(tokenizer lost). An instance is lost when it says goodbye, when its supervisor says so, when a newer instance has
the same name, or when it was silent for the liveness timeout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from shared import messages as m
from shared.actor import HEARTBEAT_S, LIVENESS_TIMEOUT_S, Actor


@dataclass(slots=True)
class Peer:
    """Last heartbeat of an instance, and when it was heard on this process's monotonic clock."""

    beat: m.Heartbeat
    heard_s: float


class Peers:
    """Mutated only by the bus callbacks of the owning service."""

    def __init__(
        self, on_lost: Callable[[m.Heartbeat, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._peers: dict[str, Peer] = {}
        self._on_lost = on_lost
        self._clock = clock

    async def attach(self, actor: Actor) -> None:
        """Subscribe to events and watch for silence."""
        await actor.on(actor.subjects.heartbeat, m.Heartbeat, self.heard)
        await actor.on(actor.subjects.goodbye, m.Goodbye, self.left)
        actor.spawn(self._watch())

    def of(self, service: str, state: str | None = "ready") -> list[m.Heartbeat]:
        """Instances of a service, in the given state (None: any)."""
        return [p.beat for p in self._peers.values() if p.beat.service == service and state in (None, p.beat.state)]

    def all(self) -> list[m.Heartbeat]:
        """Every instance that is alive, whatever its service and state."""
        return [p.beat for p in self._peers.values()]

    def heard(self, beat: m.Heartbeat) -> None:
        for other in [p.beat for p in self._peers.values() if p.beat.name == beat.name and p.beat.id != beat.id]:
            if other.service == beat.service:
                if other.started_s > beat.started_s:
                    return  # a late word of an instance that was replaced
                self._lose(other.id, "replaced by a new instance")
        self._peers[beat.id] = Peer(beat, self._clock())

    def left(self, bye: m.Goodbye) -> None:
        for peer in list(self._peers.values()):
            beat = peer.beat
            same = beat.id == bye.id if bye.id else (beat.name == bye.name and beat.started_s < bye.at_s)
            if beat.service == bye.service and same:
                self._lose(beat.id, bye.reason or "said goodbye")

    def expire(self) -> None:
        """Lose every instance that was silent for too long."""
        limit = self._clock() - LIVENESS_TIMEOUT_S
        for instance, peer in list(self._peers.items()):
            if peer.heard_s < limit:
                self._lose(instance, f"silent for {LIVENESS_TIMEOUT_S:g} s")

    def _lose(self, instance: str, reason: str) -> None:
        peer = self._peers.pop(instance, None)
        if peer is not None:
            self._on_lost(peer.beat, reason)

    async def _watch(self) -> None:
        while True:
            before = self._clock()
            await asyncio.sleep(HEARTBEAT_S)
            if self._clock() - before < 3 * HEARTBEAT_S:  # this process itself was not stalled
                self.expire()

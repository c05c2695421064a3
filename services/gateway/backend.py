"""What the HTTP side needs from the rest of the system, as a Protocol.

`service.py` implements it on the bus; tests implement it in a few lines. Handlers know nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared import messages as m


class Backend(Protocol):
    """The deployment, seen from one gateway."""

    @property
    def reply(self) -> str:
        """Subject on which this gateway receives every delta."""

    async def submit(self, request: m.GenerateRequest) -> m.Accepted:
        """Hand a generation to a tokenizer.

        Raises:
            RhizomeError: refused, or Unavailable when nobody listens or answers in time.
        """

    async def abort(self, tokenizer_id: str, rids: Sequence[str]) -> None:
        """Stop generations; with an empty `tokenizer_id` (owner unknown) every tokenizer is told."""

    async def tokenize(self, request: m.Tokenize) -> m.Tokens: ...

    async def detokenize(self, request: m.Detokenize) -> m.Text: ...

    def services(self) -> list[m.Heartbeat]:
        """Last heartbeat of every instance that is alive, this gateway included."""

    async def scheduler_infos(self) -> list[m.SchedulerInfo]:
        """State of every scheduler that answers."""

    async def flush_schedulers(self) -> dict[str, m.Flushed]:
        """Empty the prefix cache of every scheduler.

        Raises:
            Unavailable: there is no scheduler, or one did not answer.
        """

    async def scrape(self) -> list[m.MetricsText]:
        """Prometheus text of every instance that answers, this gateway included."""

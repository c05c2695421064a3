"""[walk 1] One HTTP request's generations: register, submit, receive, and abort what is left.

Used by every generating route as `async with Call(...) as call`. Leaving the block for whatever reason (client gone,
error, deadline, shutdown) stops what still runs, so that nothing computes for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from services.gateway.backend import Backend
from services.gateway.record import Record
from services.gateway.streams import Delivery, Mailbox, Stream, StreamTable
from shared import messages as m
from shared.errors import DeadlineExceeded, RhizomeError, Unavailable

DEADLINE_SLACK_S = 2.0
"""The scheduler enforces the deadline; the gateway does so this much later, in case nobody answers."""
STUCK_GRACE_S = 5.0
"""After its deadline a handler that cannot write its last bytes loses its connection after this long."""


class Call:
    """Lives as long as one HTTP handler; used by it alone."""

    def __init__(
        self,
        requests: list[m.GenerateRequest],
        *,
        backend: Backend,
        table: StreamTable,
        record: Record,
        max_queued_deltas: int,
        timeout_s: float,
        disconnect: Callable[[], None],
    ) -> None:
        self._backend, self._table, self._record, self._disconnect = backend, table, record, disconnect
        self._timeout_s = timeout_s
        self._mailbox = Mailbox(max_queued_deltas * len(requests), disconnect)
        self.streams = [Stream(request, i, self._mailbox, record.arrived_s) for i, request in enumerate(requests)]
        self._running = len(requests)
        self._timers: list[asyncio.TimerHandle] = []

    async def __aenter__(self) -> Call:
        self._table.open(self.streams)
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(self._timeout_s + DEADLINE_SLACK_S, self._expire))
        try:
            await self._submit()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._close()

    async def take(self) -> list[Delivery]:
        """All deltas at hand, at least one; empty when every generation has ended.

        Raises:
            RhizomeError: what ended a generation instead of its last delta.
        """
        if not self._running:
            return []
        batch = await self._mailbox.take()
        for _, delta in batch:
            if delta.finish_reason is not None:
                self._running -= 1
        return batch

    async def _submit(self) -> None:
        if len(self.streams) == 1:
            await self._submit_one(self.streams[0])
            return
        answers = await asyncio.gather(*(self._submit_one(s) for s in self.streams), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def _submit_one(self, stream: Stream) -> None:
        try:
            answer = await self._backend.submit(stream.request)
        except RhizomeError as fault:
            stream.ended = not isinstance(fault, Unavailable)  # refused: nothing to abort
            raise
        self._table.accepted(stream, answer)

    async def _close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._note()
        orphans: dict[str, list[str]] = {}
        for stream in self.streams:
            self._table.close(stream)
            if not stream.ended:
                orphans.setdefault(stream.tokenizer_id, []).append(stream.request.rid)
        for tokenizer_id, rids in orphans.items():
            await self._backend.abort(tokenizer_id, rids)

    def _note(self) -> None:
        """Sum up the generations for the request's log line."""
        record, streams = self._record, self.streams
        record.prompt_tokens = sum(s.prompt_tokens for s in streams)
        record.cached_tokens = sum(s.cached_tokens for s in streams)
        record.completion_tokens = sum(s.completion_tokens for s in streams)
        firsts = [s.first_token_s for s in streams if s.first_token_s]
        if firsts:
            record.ttft_ms = 1000 * (min(firsts) - record.arrived_s)

    def _expire(self) -> None:
        self._mailbox.fail(DeadlineExceeded(f"no complete answer within {self._timeout_s:g} s"))
        self._timers.append(asyncio.get_running_loop().call_later(STUCK_GRACE_S, self._disconnect))

"""All running requests of this instance, and what one token batch does to them.

`apply` is the hot path: one call per scheduler step, a few microseconds per token. It returns what has to be sent;
`service.py` sends it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from services.tokenizer.detokenizer import Detokenizers
from services.tokenizer.logprobs import LogprobArrays, LogprobTexts
from services.tokenizer.stream import Stream
from shared import messages as m
from shared.errors import InvalidRequest, Overloaded, Unavailable
from shared.messages.generation import RUNNING

HANDLES = 2**32
_LOST_END = m.ErrorInfo(Unavailable.code, "the last tokens were lost on the bus: send the request again")


@dataclass(slots=True)
class Outcome:
    """What follows from one event."""

    deltas: defaultdict[str, list[m.TextDelta]] = field(default_factory=lambda: defaultdict(list))
    """By reply subject, in order."""
    aborts: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Handles by scheduler id that the scheduler should drop without an answer."""
    aborts_again: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Handles by scheduler id that the scheduler was asked to end before, and that it still has."""
    tokens: int = 0


class StreamTable:
    """Bounded. Every way out of it is one of: last delta, error delta, `close`."""

    def __init__(self, detokenizers: Detokenizers, max_streams: int) -> None:
        self._detokenizers = detokenizers
        self._spell = LogprobTexts(detokenizers)
        self._max_streams = max_streams
        self._by_handle: dict[int, Stream] = {}
        self._by_rid: dict[str, Stream] = {}
        self._next_handle = 0
        self.empty = asyncio.Event()
        """Set while nothing runs."""
        self.empty.set()

    def __len__(self) -> int:
        return len(self._by_handle)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._by_handle.values()))

    def open(self, request: m.GenerateRequest, kept_ids: frozenset[int] = frozenset()) -> Stream:
        """Register a request. Tokens may arrive as soon as the scheduler has heard of it.

        Args:
            kept_ids: special tokens that are part of the text whatever the request says.

        Raises:
            Overloaded: the table is full.
            InvalidRequest: the rid is running already.
        """
        if request.rid in self._by_rid:
            raise InvalidRequest(f"rid {request.rid!r} is already running: use another", param="rid")
        if len(self._by_handle) >= self._max_streams:
            raise Overloaded(f"{self._max_streams} requests are running on this tokenizer: try again later")
        detokenizer = self._detokenizers.new(skip_special_tokens=request.sampling.skip_special_tokens, kept=kept_ids)
        stream = Stream(request, self._free_handle(), detokenizer, self._spell)
        self._by_handle[stream.handle] = self._by_rid[stream.rid] = stream
        self.empty.clear()
        return stream

    def close(self, stream: Stream) -> None:
        """Forget a stream; harmless if it has ended by itself."""
        if self._by_handle.get(stream.handle) is stream:
            del self._by_handle[stream.handle], self._by_rid[stream.rid]
            if not self._by_handle:
                self.empty.set()

    def by_handle(self, handle: int) -> Stream | None:
        return self._by_handle.get(handle)

    def get(self, rid: str) -> Stream | None:
        return self._by_rid.get(rid)

    def schedulers(self) -> set[str]:
        """Schedulers that streams wait for."""
        return {stream.scheduler_id for stream in self._by_handle.values()} - {""}

    def apply(self, batch: m.TokenBatch) -> Outcome:
        """Hand a batch's tokens to their streams."""
        out = Outcome()
        tokens, finishes = batch.tokens.tolist(), batch.finish.tolist()
        counts, totals, cached = batch.counts.tolist(), batch.totals.tolist(), batch.cached_tokens.tolist()
        prompt_counts = None if batch.prompt_counts is None else batch.prompt_counts.tolist()
        at = prompt_at = 0
        for i, handle in enumerate(batch.handles.tolist()):
            start, at = at, at + counts[i]
            prompt_start, prompt_at = prompt_at, prompt_at + (prompt_counts[i] if prompt_counts else 0)
            stream = self._by_handle.get(handle)
            if stream is None:
                if batch.ledger:  # the word that it is not wanted was lost, or is on its way
                    out.aborts[batch.scheduler_id].append(handle)
                continue
            stream.scheduler_id = batch.scheduler_id
            if cached[i] >= 0:
                stream.cached_tokens = cached[i]
            if prompt_at > prompt_start and batch.prompt_logprobs is not None:
                stream.add_prompt_logprobs(
                    LogprobArrays.cut(
                        batch.prompt_logprobs, batch.prompt_top_ids, batch.prompt_top_logprobs, prompt_start, prompt_at
                    )
                )
            if stream.received + counts[i] != totals[i]:
                self._fail(out, stream, _lost_tokens(stream.received, counts[i], totals[i]))
                continue
            arrays = None
            if batch.logprobs is not None:
                arrays = LogprobArrays.cut(batch.logprobs, batch.top_ids, batch.top_logprobs, start, at)
            out.tokens += counts[i]
            if stream.add_tokens(tokens[start:at], finishes[i], arrays):
                self.close(stream)
                if finishes[i] == RUNNING:
                    out.aborts[batch.scheduler_id].append(handle)
            if (delta := stream.take_delta()) is not None:
                out.deltas[stream.reply].append(delta)
        for failed in batch.errors:
            if (stream := self._by_handle.get(failed.handle)) is not None:
                self.close(stream)
                out.deltas[stream.reply].append(stream.fail(failed.error))
        if batch.ledger:
            self._reconcile(out, batch)
        return out

    def ledgers(self, tokenizer_id: str, number: int, replies: list[str]) -> dict[str, m.DeltaLedger]:
        """Everything that runs, for each of these reply subjects."""
        out = {reply: m.DeltaLedger(tokenizer_id, number, [], []) for reply in replies}
        for stream in self._by_handle.values():
            if (ledger := out.get(stream.reply)) is not None:
                ledger.rids.append(stream.rid)
                ledger.seqs.append(stream.next_seq)
        return out

    def fail_where(self, chosen: Callable[[Stream], bool], error: m.ErrorInfo) -> Outcome:
        """End every chosen stream with an error; nobody is left to be told to stop."""
        out = Outcome()
        for stream in self:
            if chosen(stream):
                self.close(stream)
                out.deltas[stream.reply].append(stream.fail(error))
        return out

    def drop_where(self, chosen: Callable[[Stream], bool]) -> Outcome:
        """Forget every chosen stream, whose receiver is gone, and have the schedulers drop it."""
        out = Outcome()
        for stream in self:
            if chosen(stream):
                self.close(stream)
                stream.abort_asked = True
                if stream.scheduler_id:
                    out.aborts[stream.scheduler_id].append(stream.handle)
        return out

    def ask_abort(self, rids: list[str]) -> dict[str, list[int]]:
        """Mark streams as no longer wanted; handles by scheduler, of those whose scheduler is known."""
        handles: defaultdict[str, list[int]] = defaultdict(list)
        for rid in rids:
            if (stream := self._by_rid.get(rid)) is not None:
                stream.abort_asked = True
                if stream.scheduler_id:
                    handles[stream.scheduler_id].append(stream.handle)
        return handles

    def _reconcile(self, out: Outcome, ledger: m.TokenBatch) -> None:
        """A stream that the scheduler has no more, and whose last tokens are not there, will never get them."""
        handles = set(ledger.handles.tolist())
        for stream in self:
            if stream.scheduler_id != ledger.scheduler_id:
                continue
            if stream.handle in handles:
                if stream.abort_asked:
                    out.aborts_again[stream.scheduler_id].append(stream.handle)
            elif 0 <= stream.queued_after < ledger.ledger:
                self.close(stream)
                out.deltas[stream.reply].append(stream.fail(_LOST_END))

    def _fail(self, out: Outcome, stream: Stream, error: m.ErrorInfo) -> None:
        self.close(stream)
        out.deltas[stream.reply].append(stream.fail(error))
        out.aborts[stream.scheduler_id].append(stream.handle)

    def _free_handle(self) -> int:
        while self._next_handle in self._by_handle:
            self._next_handle = (self._next_handle + 1) % HANDLES
        handle = self._next_handle
        self._next_handle = (handle + 1) % HANDLES
        return handle


def _lost_tokens(received: int, count: int, total: int) -> m.ErrorInfo:
    return m.ErrorInfo(
        Unavailable.code,
        f"tokens were lost on the bus: {received} + {count} arrived of {total}; send the request again",
    )

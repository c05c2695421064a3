"""[walk 13] Running generations of this gateway, and the deltas that arrive for them.

`StreamTable` is fed by the bus callback, `Mailbox` is read by one HTTP handler. Nothing here knows HTTP or the bus.
The entry of a generation holds its request and every token id so far: all that is needed to submit
`prompt + ids so far` again when a service dies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from services.gateway.metrics import GatewayMetrics
from shared import messages as m
from shared.errors import InvalidRequest, Overloaded, RhizomeError, Unavailable, from_code

Delivery = tuple[int, m.TextDelta]
"""Index of the generation in its HTTP request, and what it gained."""


class Mailbox:
    """Deltas of one HTTP request in order of arrival, bounded. One reader."""

    def __init__(self, limit: int, on_overflow: Callable[[], None]) -> None:
        self._limit, self._on_overflow = limit, on_overflow
        self._items: list[Delivery] = []
        self._fault: RhizomeError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, index: int, delta: m.TextDelta) -> None:
        if self._fault is not None:
            return
        if len(self._items) >= self._limit:
            self._items.clear()
            self.fail(Overloaded(f"client reads too slowly: {self._limit:,} deltas were waiting for it"))
            self._on_overflow()
            return
        self._items.append((index, delta))
        self._wake()

    def fail(self, fault: RhizomeError) -> None:
        """Raise `fault` in the reader, after it took what came before."""
        if self._fault is None:
            self._fault = fault
            self._wake()

    async def take(self) -> list[Delivery]:
        """Everything at hand; waits until there is something.

        Raises:
            RhizomeError: the fault that ended the stream.
        """
        while not self._items:
            if self._fault is not None:
                raise self._fault
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(slots=True)
class Stream:
    """One generation, from before it is submitted to its last delta. Mutated only by the table."""

    request: m.GenerateRequest
    index: int
    mailbox: Mailbox
    arrived_s: float
    """Arrival of the HTTP request on `StreamTable.clock`."""
    tokenizer_id: str = ""
    """Empty until the request was accepted."""
    scheduler_id: str = ""
    accepted_after: int = 0
    """Number of the tokenizer's ledger that its answer told."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    next_seq: int = 0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    ended: bool = False
    """Its last delta has arrived."""


class StreamTable:
    """Every running generation by rid. Lives as long as the process; owned by its event loop."""

    def __init__(
        self, max_streams: int, metrics: GatewayMetrics, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._max_streams = max_streams
        self._metrics = metrics
        self.clock = clock
        self._streams: dict[str, Stream] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, streams: list[Stream]) -> None:
        """Register before submitting: deltas may overtake the answer.

        Raises:
            Overloaded: the gateway runs as many generations as it may.
            Unavailable: it is shutting down.
            InvalidRequest: a rid is already running, or the request alone is over the limit.
        """
        if self._draining:
            raise Unavailable("this gateway is shutting down: retry")
        if len(streams) > self._max_streams:
            raise InvalidRequest(
                f"{len(streams):,} generations in one request are over the limit of {self._max_streams:,}: "
                "split it or raise --max-inflight-requests"
            )
        if len(self._streams) + len(streams) > self._max_streams:
            raise Overloaded(
                f"{len(self._streams):,} of {self._max_streams:,} generations are running: retry later or raise "
                "--max-inflight-requests"
            )
        for stream in streams:
            if stream.request.rid in self._streams:
                raise InvalidRequest(f"rid {stream.request.rid!r} is already running: choose another", param="rid")
        for stream in streams:
            self._streams[stream.request.rid] = stream
        self._idle.clear()

    def accepted(self, stream: Stream, answer: m.Accepted) -> None:
        """Note who works on a generation."""
        stream.tokenizer_id, stream.scheduler_id = answer.tokenizer_id, answer.scheduler_id
        stream.accepted_after, stream.prompt_tokens = answer.ledger, answer.prompt_tokens

    def dispatch(self, batch: m.TextDeltas) -> None:
        """Deliver one message: the hot path, once per step for all generations."""
        now = self.clock()
        streams = self._streams
        for delta in batch.deltas:
            stream = streams.get(delta.rid)
            if stream is None:
                continue  # ended or aborted meanwhile
            if delta.seq != stream.next_seq:
                gap = f"part of the answer was lost (delta {stream.next_seq} missing, {delta.seq} arrived): retry"
                self._fail(stream, Unavailable(gap))
                continue
            stream.next_seq += 1
            if delta.prompt is not None:
                stream.prompt_tokens, stream.cached_tokens = delta.prompt.prompt_tokens, delta.prompt.cached_tokens
                stream.image_tokens = delta.prompt.image_tokens
            if delta.token_ids:
                stream.token_ids += delta.token_ids
                self._time(stream, len(delta.token_ids), now)
            stream.completion_tokens = delta.completion_tokens
            if delta.error is not None or delta.finish_reason is not None:
                self._end(stream, delta, now)
            else:
                stream.mailbox.put(stream.index, delta)

    def reconcile(self, ledger: m.DeltaLedger) -> list[str]:
        """Compare with what a tokenizer has: end generations of which a delta was lost.

        A generation that is not accepted yet is left alone: it may be another tokenizer's.

        Returns:
            What the tokenizer has and nobody here waits for: the word that it is not wanted was lost, or is on its
            way.
        """
        there, streams = dict(zip(ledger.rids, ledger.seqs, strict=False)), self._streams
        unwanted = [
            rid for rid in there
            if (stream := streams.get(rid)) is None or stream.tokenizer_id not in ("", ledger.tokenizer_id)
        ]  # fmt: skip
        for rid, stream in list(streams.items()):
            if stream.tokenizer_id != ledger.tokenizer_id:
                continue
            seq = there.get(rid)
            if seq is None and stream.accepted_after < ledger.number:
                self._fail(stream, Unavailable("the end of the answer was lost: retry"))
            elif seq is not None and seq > stream.next_seq:
                self._fail(stream, Unavailable(f"part of the answer was lost (delta {stream.next_seq} missing): retry"))
        return unwanted

    def lose(self, instance: str, reason: str) -> None:
        """A tokenizer or scheduler is gone: end what it was working on."""
        for stream in list(self._streams.values()):
            if instance in (stream.tokenizer_id, stream.scheduler_id):
                self._fail(stream, lost(instance, reason))

    def close(self, stream: Stream) -> None:
        """Forget a generation; later deltas of it are ignored."""
        if self._streams.get(stream.request.rid) is stream:  # its rid may be in use again
            del self._streams[stream.request.rid]
        if not self._streams:
            self._idle.set()

    def refuse_new(self) -> None:
        """From now on, `open` fails: the gateway is shutting down."""
        self._draining = True

    def fail_all(self, fault: RhizomeError) -> None:
        """End every running generation with an error."""
        for stream in list(self._streams.values()):
            self._fail(stream, fault)

    async def idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

    def _end(self, stream: Stream, delta: m.TextDelta, now: float) -> None:
        stream.ended = True
        self.close(stream)
        if delta.error is not None:
            stream.mailbox.fail(from_code(delta.error.code, delta.error.message, delta.error.param))
        elif delta.finish_reason == "error":
            stream.mailbox.fail(RhizomeError("the generation failed without a reason"))
        else:
            self._metrics.e2e_request_latency.observe(now - stream.arrived_s)
            stream.mailbox.put(stream.index, delta)

    def _fail(self, stream: Stream, fault: RhizomeError) -> None:
        self.close(stream)
        stream.mailbox.fail(fault)

    def _time(self, stream: Stream, tokens: int, now: float) -> None:
        if not stream.request.stream:
            return  # one delta at the end says nothing about single tokens
        if stream.first_token_s == 0.0:
            stream.first_token_s = now
            self._metrics.time_to_first_token.observe(now - stream.arrived_s)
        else:
            gap = (now - stream.last_token_s) / tokens
            for _ in range(tokens):
                self._metrics.inter_token_latency.observe(gap)
        stream.last_token_s = now


def lost(instance: str, reason: str) -> Unavailable:
    """The error of a generation whose tokenizer or scheduler is gone."""
    return Unavailable(f"{instance}, which worked on this request, was lost ({reason}): retry")

"""The tokenizer on the bus: the only module of this service that sends or receives.

Handlers are short: check and encode a request (`generate`), have its images and videos encoded by a vision instance
(`media`), hand a step's tokens to the streams (`tokens`), pass an
abort on (`abort`), answer `tokenize` and `detokenize`, end streams whose scheduler or gateway is gone, and tell each
gateway every few seconds which of its requests are here (see `shared.ledgers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from services.tokenizer import admission
from services.tokenizer.answer_plan import AnswerPlan
from services.tokenizer.encoder import Encoder
from services.tokenizer.media.demands import Demand, Demands
from services.tokenizer.media.sources import sources_of
from services.tokenizer.model import Model
from services.tokenizer.packets import pack
from services.tokenizer.prompt import PromptBuilder
from services.tokenizer.schedulers import SchedulerRoll
from services.tokenizer.stream import Stream
from services.tokenizer.streams import Outcome, StreamTable
from shared import messages as m
from shared.actor import HEARTBEAT_S, Actor
from shared.errors import Aborted, DeadlineExceeded, InvalidRequest, MediaLost, RhizomeError, Unavailable
from shared.ledgers import LedgerRounds
from shared.peers import Peers

QUEUE_GROUP = "tokenizer"
SCHEDULE_TIMEOUT_S = 8.0
"""Less than the 10 s that senders wait, so that they hear the reason."""
VISION_ACCEPT_S, VISION_RETRY_S, VISION_PATIENCE_S = 5.0, 0.25, 30.0
"""Until one vision instance has accepted a demand, between tries, and of all tries."""
VISION_SILENCE_S = 45.0
"""An accepted demand without an answer for so long is asked again: the answer may have been lost."""
ENCODE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one instance; see `TokenizerConfig`."""

    max_streams: int
    max_media_per_request: int = 64
    media_timeout_s: float = 120.0


class TokenizerService:
    """One instance. `start` makes it known to the others, `drain` ends it gently."""

    def __init__(
        self, actor: Actor, model: Model, encoder: Encoder, limits: Limits,
        clock: Callable[[], float] = time.monotonic, wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        """
        Args:
            wait: for so many seconds, until vision is asked once more.
        """
        self._actor, self._model, self._encoder = actor, model, encoder
        self._prompts = PromptBuilder(model, encoder)
        self._streams = StreamTable(model.detokenizers, limits.max_streams)
        self._peers = Peers(self._peer_lost)
        self._roll = SchedulerRoll(clock)
        self._ledgers = LedgerRounds(clock)
        self._demands, self._clock, self._wait = Demands(), clock, wait
        self._limits = limits
        self._sending = asyncio.Lock()  # keeps the deltas of a stream in the order of their numbers
        self._metrics(actor)

    async def start(self) -> None:
        """Subscribe, announce, be ready."""
        actor, subjects = self._actor, self._actor.subjects
        vocab_size = self._model.vocabulary.size
        actor.facts = m.ServiceFacts(self._model.name, self._model.context_length, vocab_size, int(time.time()))
        await self._peers.attach(actor)
        await actor.on(subjects.tokenizer_tokens(actor.id), m.TokenBatch, self._on_tokens)
        await actor.on(subjects.tokenizer_abort(actor.id), m.Abort, self._on_abort)
        if self._model.expansion is not None:
            await actor.on(subjects.tokenizer_media(actor.id), m.MediaEncoded, self._on_media)
        await actor.serve(subjects.generate, m.GenerateRequest, self._generate, QUEUE_GROUP)
        await actor.serve(subjects.tokenize, m.Tokenize, self._tokenize, QUEUE_GROUP)
        await actor.serve(subjects.detokenize, m.Detokenize, self._detokenize, QUEUE_GROUP)
        await actor.start()
        actor.spawn(self._tick_forever())
        await actor.set_state("ready")

    async def drain(self) -> None:
        """Take no new requests and return when the running ones have ended; when cancelled, tell their senders."""
        try:
            await self._actor.leave_queues()
            await self._streams.empty.wait()
        finally:
            error = m.ErrorInfo(Unavailable.code, "the tokenizer was shut down: send the request again")
            await self._send(self._streams.fail_where(lambda _: True, error))
            self._encoder.close()

    async def _generate(self, request: m.GenerateRequest) -> m.Accepted:
        """[walk 2] A request arrives: check it, make ids of it, hand it to a scheduler."""
        admission.check_request(request, self._actor.subjects, self._model.vocabulary.size)
        sources = self._sources(request)
        plan = self._model.answers.plan(request)
        stream = self._streams.open(request, plan.kept_ids)
        if self._actor.subjects.is_gateways(request.reply):
            self._ledgers.owe(request.reply)
        with contextlib.ExitStack() as undo:
            undo.callback(self._streams.close, stream)
            accepted = await self._schedule(request, plan, stream, sources)
            undo.pop_all()  # accepted: from here on its last delta closes it
        return accepted

    async def _schedule(
        self, request: m.GenerateRequest, plan: AnswerPlan, stream: Stream, sources: list[m.MediaSource]
    ) -> m.Accepted:
        """Encode, queue at a scheduler, learn which one it is. The stream is registered: tokens may come first."""
        with self._encode_seconds.time():
            prompt = await self._prompts.build(request, with_media=bool(sources))
        if sources:
            media = await self._encode_media(request.rid, sources)
            prompt = self._prompts.with_media(prompt, media, admission.prompt_param(request))
            # Should the embeddings be gone when the engine wants them, all this is done again.
            stream.again = None if stream.again_asked else lambda: self._schedule(request, plan, stream, sources)
        text = prompt.text or ""
        grammar = plan.full_grammar(text)
        tokenized = admission.tokenized(request, self._model, prompt, grammar, self._actor.id, stream.handle)
        made_of = "" if grammar is request.grammar else plan.grammar_param()
        stream.begin(prompt, tokenized.logprob_start_len, plan.reader(text), made_of)
        if stream.abort_asked:
            raise Aborted(f"request {request.rid!r} was aborted before it was queued")
        try:
            queued = await self._queue(tokenized)
        except InvalidRequest as fault:
            if fault.param == "structural_tag" and made_of:
                raise InvalidRequest(fault.message, param=made_of) from fault
            raise
        stream.scheduler_id, stream.queued_after = queued.scheduler_id, queued.ledger
        if self._roll.is_gone(queued.scheduler_id):
            self._scheduler_lost(queued.scheduler_id, "ended after it took the request")
        elif stream.abort_asked:
            await self._abort_at(
                queued.scheduler_id, [stream.handle], silent=self._streams.get(request.rid) is not stream
            )
        return m.Accepted(
            request.rid, self._actor.id, queued.scheduler_id, len(prompt.token_ids), self._ledgers.number
        )  # fmt: skip

    def _sources(self, request: m.GenerateRequest) -> list[m.MediaSource]:
        """
        Raises:
            InvalidRequest: a source is wrong, or there are too many, or the model takes none.
        """
        if self._model.expansion is None:
            if request.media:
                raise InvalidRequest("this model reads text only: leave the images out", param=request.media[0].param)
            return []  # the chat template refuses parts that are no text
        sources = sources_of(request)
        if len(sources) > self._limits.max_media_per_request:
            raise InvalidRequest(
                f"{len(sources)} images and videos are over the limit of {self._limits.max_media_per_request}: send "
                "fewer or raise --max-media-per-request",
                param=sources[self._limits.max_media_per_request].param,
            )
        return sources

    async def _encode_media(self, rid: str, sources: list[m.MediaSource]) -> list[m.EncodedMedia]:
        """Have a vision instance encode the media of a request, another one if it is lost.

        Raises:
            RhizomeError: what vision says of them, or that it did not answer in time.
        """
        demand = self._demands.open(rid, sources)
        try:
            async with asyncio.timeout(self._limits.media_timeout_s):
                await self._ask_vision(demand)
                return await demand.answer
        except TimeoutError:
            raise DeadlineExceeded(
                f"the images and videos were not encoded within {self._limits.media_timeout_s:g} s (--media-timeout-s)"
            ) from None
        finally:
            self._demands.close(demand)
            await self._cancel_unwanted(demand)

    async def _cancel_unwanted(self, demand: Demand) -> None:
        """Who works on it need not go on if nobody waits any more."""
        if demand.given_up and demand.vision_id:
            subject = self._actor.subjects.vision_cancel(demand.vision_id)
            await self._actor.send(subject, m.CancelEncode(self._actor.id, demand.handle))

    async def _ask_vision(self, demand: Demand) -> None:
        """Give a demand to some vision instance, while somebody waits for it. One that is starting again is waited for.

        Raises:
            RhizomeError: nobody takes it.
        """
        ask = m.EncodeMedia(self._actor.id, demand.handle, demand.rid, demand.sources)
        patience_s = self._clock() + VISION_PATIENCE_S
        while not demand.answer.done():
            try:
                accepted = await self._actor.ask(
                    self._actor.subjects.encode_media, ask, m.EncodeAccepted, VISION_ACCEPT_S
                )
            except Unavailable as fault:
                if self._clock() > patience_s:
                    raise Unavailable(f"no vision service takes images: start one ({fault.message})") from fault
                await self._wait(VISION_RETRY_S)
            else:
                demand.accepted(accepted.vision_id, self._clock())
                await self._cancel_unwanted(demand)
                return

    async def _ask_again(self, demand: Demand) -> None:
        """For one whose vision instance was lost."""
        try:
            await self._ask_vision(demand)
        except RhizomeError as fault:
            if not demand.answer.done():
                demand.answer.set_exception(fault)

    async def _on_media(self, encoded: m.MediaEncoded) -> None:
        self._demands.encoded(encoded)

    async def _queue(self, tokenized: m.TokenizedRequest) -> m.Queued:
        try:
            return await self._actor.ask(self._actor.subjects.schedule, tokenized, m.Queued, SCHEDULE_TIMEOUT_S)
        except Unavailable:
            # Whoever may have taken it without our hearing should not work for nobody.
            for beat in self._peers.of("scheduler", None):
                await self._abort_at(beat.id, [tokenized.handle], silent=True)
            raise

    async def _on_tokens(self, batch: m.TokenBatch) -> None:
        """[walk 12] One step's tokens become text, one message per receiver."""
        if batch.errors:
            batch = self._without_lost_media(batch)
        outcome = self._streams.apply(batch)
        self._detokenized.inc(outcome.tokens)
        await self._send(outcome)

    def _without_lost_media(self, batch: m.TokenBatch) -> m.TokenBatch:
        """The batch without errors that encoding images again will mend, which is begun."""
        kept = []
        for failed in batch.errors:
            stream = self._streams.by_handle(failed.handle)
            if failed.error.code == MediaLost.code and stream is not None and stream.again is not None:
                self._actor.log.info("encoding media again", rid=stream.rid)
                self._actor.spawn(self._again(stream, stream.again))
            else:
                kept.append(failed)
        return dataclasses.replace(batch, errors=kept)

    async def _again(self, stream: Stream, schedule: Callable[[], Coroutine[Any, Any, m.Accepted]]) -> None:
        stream.again, stream.again_asked = None, True
        stream.scheduler_id, stream.queued_after = "", -1
        try:
            await schedule()
        except RhizomeError as fault:
            error = m.ErrorInfo(fault.code, fault.message, fault.param)
            await self._send(self._streams.fail_where(lambda other: other is stream, error))

    async def _on_abort(self, abort: m.Abort) -> None:
        for scheduler_id, handles in self._streams.ask_abort(abort.rids).items():
            await self._abort_at(scheduler_id, handles, silent=False)

    async def _tokenize(self, request: m.Tokenize) -> m.Tokens:
        return m.Tokens(await self._prompts.tokenize(request), self._model.context_length)

    async def _detokenize(self, request: m.Detokenize) -> m.Text:
        return m.Text(await self._prompts.detokenize(request))

    async def _send(self, outcome: Outcome) -> None:
        async with self._sending:
            for reply, deltas in outcome.deltas.items():
                await self._send_deltas(reply, deltas, outcome)
        for scheduler_id, handles in outcome.aborts.items():
            await self._abort_at(scheduler_id, handles, silent=True)
        for scheduler_id, handles in outcome.aborts_again.items():
            await self._abort_at(scheduler_id, handles, silent=False)

    async def _send_deltas(self, reply: str, deltas: list[m.TextDelta], outcome: Outcome) -> None:
        packets = pack(deltas, self._actor.bus.max_payload_bytes)
        for rid in packets.refused_rids:
            self._actor.log.warning("answer over the message limit", rid=rid)
            if (stream := self._streams.get(rid)) is not None:
                self._streams.close(stream)
                outcome.aborts[stream.scheduler_id].append(stream.handle)
        for data in packets.data:
            await self._actor.bus.publish(reply, data)

    async def _abort_at(self, scheduler_id: str, handles: list[int], *, silent: bool) -> None:
        subject = self._actor.subjects.scheduler_abort(scheduler_id)
        await self._actor.send(subject, m.AbortHandles(self._actor.id, handles, silent))

    def _peer_lost(self, beat: m.Heartbeat, reason: str) -> None:
        if beat.service == "scheduler":
            self._roll.lost(beat.id)
            self._scheduler_lost(beat.id, reason)
        elif beat.service == "vision":
            for demand in self._demands.lost(beat.id):
                self._actor.log.info("vision lost, asking again", vision=beat.id, rid=demand.rid)
                self._actor.spawn(self._ask_again(demand))
        elif beat.service == "gateway":
            reply = self._actor.subjects.gateway_deltas(beat.id)
            outcome = self._streams.drop_where(lambda stream: stream.reply == reply)
            self._actor.log.info("gateway lost", gateway=beat.id, reason=reason)
            self._actor.spawn(self._send(outcome))

    def _scheduler_lost(self, scheduler_id: str, reason: str) -> None:
        error = m.ErrorInfo(Unavailable.code, f"scheduler {scheduler_id} was lost ({reason}): send the request again")
        outcome = self._streams.fail_where(lambda stream: stream.scheduler_id == scheduler_id, error)
        self._actor.log.warning("scheduler lost", scheduler=scheduler_id, reason=reason)
        self._actor.spawn(self._send(outcome))

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self.tick()

    def tick(self) -> None:
        """What has to happen because time has passed; once a second."""
        for demand in self._demands.overdue(self._clock(), VISION_SILENCE_S):
            self._actor.spawn(self._ask_again(demand))
        alive = (beat.id for beat in self._peers.of("scheduler", None))
        for scheduler_id in self._roll.overdue(self._streams.schedulers(), alive):
            self._scheduler_lost(scheduler_id, "never heard of")
        replies = self._ledgers.due()
        for reply, ledger in self._streams.ledgers(self._actor.id, self._ledgers.number, replies).items():
            if ledger.rids:
                self._ledgers.owe(reply)
            self._actor.spawn(self._send_ledger(reply, ledger))

    async def _send_ledger(self, reply: str, ledger: m.DeltaLedger) -> None:
        async with self._sending:  # behind the deltas that it knows of
            await self._actor.send(reply, m.TextDeltas([], ledger))

    def _metrics(self, actor: Actor) -> None:
        registry = actor.registry
        streams = Gauge("rhizome_num_streams", "Requests that this tokenizer detokenizes", registry=registry)
        streams.set_function(lambda: len(self._streams))
        self._encode_seconds = Histogram(
            "rhizome_encode_seconds", "Rendering and encoding one prompt, waiting for a thread included",
            buckets=ENCODE_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._detokenized = Counter("rhizome_detokenized_tokens", "Tokens turned into text", registry=registry)

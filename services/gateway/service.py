"""The gateway on the bus: the only module here that touches it.

Implements `Backend` for the HTTP handlers, feeds the stream table from one subscription for all generations, and
ends the streams of services that die.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

from aiohttp import web

from services.gateway.app import build_app
from services.gateway.auth import ApiKeys
from services.gateway.config import GatewayConfig
from services.gateway.core import Core
from services.gateway.http_log import server_logger
from services.gateway.media import MediaReferences, has_media
from services.gateway.metrics import GatewayMetrics
from services.gateway.streams import StreamTable, lost
from shared import messages as m
from shared import wire
from shared.actor import Actor
from shared.blobs import Blobs
from shared.errors import ConfigError, Unavailable
from shared.held_folder import HeldFolder, deployment_folder, memory_root
from shared.peers import Peers

TOKENIZE_TIMEOUT_S = 10.0
SWEEP_S = 10.0
"""Often enough that a held folder never counts as abandoned."""
CONTROL_TIMEOUT_S = 5.0
SCRAPE_TIMEOUT_S = 1.0
CLOSE_S = 1.0
"""Part of the drain timeout kept for telling clients whose streams did not finish, and for closing connections."""
RIDS_PER_ABORT = 100
"""The longest ones fit the message."""
REMEMBERED = 256
"""Lost instances that are remembered, in case an answer of theirs is still on its way."""


class GatewayService:
    """One gateway process. `start`, then the actor runs until SIGTERM (or `stop`, in tests)."""

    def __init__(self, actor: Actor, config: GatewayConfig) -> None:
        self._config = config
        self.actor = actor
        metrics = GatewayMetrics(self.actor.registry)
        self.table = StreamTable(config.max_inflight_requests, metrics)
        metrics.watch_in_flight(self.table.__len__)
        self.peers = Peers(self._on_lost)
        self._lost: dict[str, str] = {}
        self._memory: HeldFolder | None = None
        self._media = MediaReferences(self._open_blobs, self._memories)
        core = Core(config, self, self.table, self._media, self.actor.id)
        app = build_app(core, ApiKeys.load(config.api_key, config.api_key_file), metrics, self.actor.log)
        self.runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a client that goes away ends its handler, which aborts its generations
            access_log=None,
            logger=server_logger(),
            keepalive_timeout=config.keepalive_s,
            shutdown_timeout=CLOSE_S / 2,  # aiohttp waits for it twice
        )

    @property
    def port(self) -> int:
        """Port that is listened on, once started."""
        return int(self.runner.addresses[0][1])

    async def start(self) -> None:
        """Subscribe, then listen.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        await self.actor.on(self.reply, m.TextDeltas, self._on_deltas)
        await self.peers.attach(self.actor)
        await self.actor.start()
        await self.runner.setup()
        try:
            await web.TCPSite(self.runner, self._config.host, self._config.port).start()
        except OSError as fault:
            raise ConfigError(_bind_fault(self._config, fault)) from fault
        await self.actor.set_state("ready")
        self.actor.spawn(self._sweep_forever())
        self.actor.spawn(self._say_where())  # runs when the actor has its signal handlers: who reads it may signal

    def _open_blobs(self) -> Blobs:
        common, root = self._config.common, memory_root(self._config.shared_memory_dir)
        self._memory = HeldFolder(deployment_folder(root, common.deployment, common.nats_url), alone=False)
        return Blobs(self._memory, self.actor.bus, common.deployment)

    def _memories(self) -> list[str]:
        return [beat.facts.memory for beat in self.peers.of("vision", None) if beat.facts is not None]

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._memory is not None:
                self._memory.touch()
            await self._media.sweep()

    async def _say_where(self) -> None:
        self.actor.log.info("listening", url=f"http://{self._config.host}:{self.port}")

    async def drain(self) -> None:
        """Stop accepting, wait for running generations, end what is left with an error, close connections."""
        for site in self.runner.sites:
            await site.stop()
        self.table.refuse_new()
        try:
            await asyncio.wait_for(self.table.idle(), max(0.0, self._config.common.drain_timeout_s - CLOSE_S))
        except TimeoutError:
            self.table.fail_all(Unavailable("this gateway is shutting down: retry"))
        await self.runner.cleanup()
        if self._memory is not None:
            self._memory.remove()

    async def stop(self) -> None:
        """Drain, say goodbye and disconnect."""
        await self.actor.set_state("draining")
        await self.drain()
        await self.actor.stop("stopped")

    # Backend
    @property
    def reply(self) -> str:
        return self.actor.subjects.gateway_deltas(self.actor.id)

    async def submit(self, request: m.GenerateRequest) -> m.Accepted:
        timeout_s = self._config.accept_timeout_s
        if request.media or (request.chat is not None and has_media(request.chat)):
            timeout_s += self._config.media_timeout_s
        accepted = await self.actor.ask(self.actor.subjects.generate, request, m.Accepted, timeout_s)
        for owner in (accepted.tokenizer_id, accepted.scheduler_id):
            if owner in self._lost and not self._is_alive(owner):  # it died while its answer was on the way
                raise lost(owner, self._lost[owner])
        return accepted

    async def abort(self, tokenizer_id: str, rids: Sequence[str]) -> None:
        owners = [tokenizer_id] if tokenizer_id else [b.id for b in self.peers.of("tokenizer", None)]
        for owner in owners:
            for at in range(0, len(rids), RIDS_PER_ABORT):
                part = [*rids[at : at + RIDS_PER_ABORT]]
                await self.actor.send(self.actor.subjects.tokenizer_abort(owner), m.Abort(part))

    async def tokenize(self, request: m.Tokenize) -> m.Tokens:
        return await self.actor.ask(self.actor.subjects.tokenize, request, m.Tokens, TOKENIZE_TIMEOUT_S)

    async def detokenize(self, request: m.Detokenize) -> m.Text:
        return await self.actor.ask(self.actor.subjects.detokenize, request, m.Text, TOKENIZE_TIMEOUT_S)

    def services(self) -> list[m.Heartbeat]:
        return self.peers.all()

    async def scheduler_infos(self) -> list[m.SchedulerInfo]:
        answers = await asyncio.gather(*map(self._scheduler_info, self._schedulers()), return_exceptions=True)
        infos = []
        for answer in answers:
            if isinstance(answer, m.SchedulerInfo):
                infos.append(answer)
            elif not isinstance(answer, Unavailable):  # one that dies now is merely left out
                raise answer
        return infos

    async def flush_schedulers(self) -> dict[str, m.Flushed]:
        ids = self._schedulers()
        if not ids:
            raise Unavailable("no scheduler is there: nothing was flushed")
        flushed = await asyncio.gather(*map(self._flush, ids))
        return dict(zip(ids, flushed, strict=True))

    async def scrape(self) -> list[m.MetricsText]:
        """This gateway answers its own question like everybody else."""
        alive = max(1, len(self.peers.all()))
        question = wire.encode(m.Empty())
        answers = await self.actor.bus.gather(
            self.actor.subjects.metrics, question, most=alive, timeout_s=SCRAPE_TIMEOUT_S
        )
        return [wire.decode(m.MetricsText, answer) for answer in answers]

    def _on_deltas(self, batch: m.TextDeltas) -> None:
        self.table.dispatch(batch)
        if batch.ledger is not None and (unwanted := self.table.reconcile(batch.ledger)):
            self.actor.spawn(self.abort(batch.ledger.tokenizer_id, unwanted))

    def _schedulers(self) -> list[str]:
        return [beat.id for beat in self.peers.of("scheduler", None) if beat.state != "starting"]

    async def _scheduler_info(self, id_: str) -> m.SchedulerInfo:
        subject = self.actor.subjects.scheduler_info(id_)
        return await self.actor.ask(subject, m.Empty(), m.SchedulerInfo, CONTROL_TIMEOUT_S)

    async def _flush(self, id_: str) -> m.Flushed:
        subject = self.actor.subjects.scheduler_flush(id_)
        return await self.actor.ask(subject, m.Empty(), m.Flushed, CONTROL_TIMEOUT_S)

    def _is_alive(self, instance: str) -> bool:
        return any(beat.id == instance for beat in self.peers.all())

    def _on_lost(self, beat: m.Heartbeat, reason: str) -> None:
        if beat.service in ("tokenizer", "scheduler"):
            self.actor.log.warning("service lost", lost=beat.id, reason=reason)
            self._lost[beat.id] = reason
            while len(self._lost) > REMEMBERED:
                self._lost.pop(next(iter(self._lost)))
            self.table.lose(beat.id, reason)


def _bind_fault(config: GatewayConfig, fault: OSError) -> str:
    where = f"{config.host}:{config.port}"
    if fault.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there or change --port"
    return f"cannot listen on {where}: {fault.strerror}: change --host or --port"

"""Routes that tell about the deployment: models, health, readiness, information, cache flush."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from services.gateway.core import Core, json_response
from services.gateway.models import resolve_model, served_models
from services.gateway.responses import (
    CacheFlush,
    GatewayInfo,
    Health,
    Instance,
    ModelList,
    Readiness,
    ServedModelInfo,
    ServerInfo,
)
from shared import __version__


class Admin:
    """Handlers of these routes."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def models(self, _: web.Request) -> web.Response:
        return json_response(ModelList([*served_models(self._core.backend.services()).values()]))

    async def model(self, request: web.Request) -> web.Response:
        return json_response(resolve_model(request.match_info["id"], self._core.backend.services()))

    async def model_info(self, _: web.Request) -> web.Response:
        model = resolve_model(None, self._core.backend.services())
        return json_response(ServedModelInfo(model.id, model.id, True, model.max_model_len))

    async def health(self, _: web.Request) -> web.Response:
        return json_response(Health())

    async def ready(self, _: web.Request) -> web.Response:
        missing = self._missing()
        return json_response(Readiness("not ready" if missing else "ready", missing), 503 if missing else 200)

    async def server_info(self, _: web.Request) -> web.Response:
        core, services = self._core, self._core.backend.services()
        info = ServerInfo(
            version=__version__,
            models=[*served_models(services).values()],
            services=[Instance(b.service, b.name, b.id, b.state, b.host, b.pid, b.started_s) for b in services],
            schedulers=await core.backend.scheduler_infos(),
            gateway=GatewayInfo(
                id=core.instance,
                in_flight=len(core.table),
                max_inflight_requests=core.config.max_inflight_requests,
                max_prompts_per_request=core.config.max_prompts_per_request,
                max_n=core.config.max_n,
                max_body_bytes=core.config.max_body_bytes,
                request_timeout_s=core.config.request_timeout_s,
            ),
        )
        return json_response(info)

    async def flush_cache(self, _: web.Request) -> web.Response:
        flushed = await self._core.backend.flush_schedulers()
        return json_response(
            CacheFlush(
                released_pages=sum(f.released_pages for f in flushed.values()),
                held_pages=sum(f.held_pages for f in flushed.values()),
                schedulers={id_: asdict(f) for id_, f in flushed.items()},
            )
        )

    def _missing(self) -> list[str]:
        beats = self._core.backend.services()
        missing = []
        if any(b.id == self._core.instance and b.state == "draining" for b in beats):
            missing.append("this gateway is draining")
        if not any(b.service == "tokenizer" and b.state == "ready" for b in beats):
            missing.append("no tokenizer is ready")
        schedulers = [b for b in beats if b.service == "scheduler" and b.state == "ready"]
        if not schedulers:
            missing.append("no scheduler is ready")
        elif not any(b.engines_ready for b in schedulers):
            missing.append("no engine is ready")
        return missing

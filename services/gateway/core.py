"""What every handler shares: limits, the deployment, the running generations. Built once by `service.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from services.gateway.backend import Backend
from services.gateway.call import Call
from services.gateway.config import GatewayConfig
from services.gateway.media import MediaReferences, hand_over
from services.gateway.record import record_of
from services.gateway.streams import StreamTable
from shared import messages as m


@dataclass(frozen=True, slots=True)
class Core:
    """Lives as long as the process."""

    config: GatewayConfig
    backend: Backend
    table: StreamTable
    media: MediaReferences
    instance: str
    """Id of this gateway."""

    async def by_reference(self, generations: list[m.GenerateRequest]) -> list[m.GenerateRequest]:
        """The generations with their large images and videos kept where vision finds them.

        Raises:
            RhizomeError: a URL is wrong, there are too many, or they cannot be kept.
        """
        return await hand_over(generations, self.media, self.config.max_media_per_request)

    def call(self, request: web.Request, generations: list[m.GenerateRequest], timeout_s: float) -> Call:
        """A call whose connection is cut when its client no longer reads."""

        def disconnect() -> None:
            if request.transport is not None:
                request.transport.abort()

        return Call(
            generations,
            backend=self.backend,
            table=self.table,
            record=record_of(request),
            max_queued_deltas=self.config.max_queued_deltas,
            timeout_s=timeout_s,
            disconnect=disconnect,
        )


def json_response(value: Any, status: int = 200) -> web.Response:
    """A dataclass (or list of them) as the JSON answer."""
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")

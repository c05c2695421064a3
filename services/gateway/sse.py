"""[walk 13] Server-sent events: an event stream whose status is still open until its first byte, and lean chunks.

A streamed token costs one chunk. Everything in it but the text is the same from chunk to chunk, so chunks are made
by joining pre-encoded bytes with the JSON of the text instead of building and encoding a dict.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from aiohttp import web

from services.gateway.call import Call
from services.gateway.http_errors import error_body
from services.gateway.record import record_of
from services.gateway.streams import Delivery
from shared.errors import RhizomeError

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def send_events(
    request: web.Request,
    call: Call,
    render: Callable[[list[Delivery]], bytes],
    finish: Callable[[], bytes],
) -> web.StreamResponse:
    """Write each batch of deltas as one chunk of bytes, then what `finish` gives and the end mark.

    An error before the first byte is raised, so that it becomes the status; later it is sent as an event and ends
    the stream.
    """
    response = web.StreamResponse(headers=_HEADERS)
    try:
        while batch := await call.take():
            if data := render(batch):
                if not response.prepared:
                    await response.prepare(request)
                await response.write(data)
        if not response.prepared:
            await response.prepare(request)
        await response.write(finish() + DONE)
    except RhizomeError as fault:
        if not response.prepared:
            raise
        record_of(request).error = fault.code
        await response.write(event(error_body(fault)))
    await response.write_eof()
    return response


def event(data: bytes) -> bytes:
    """One event of JSON bytes."""
    return b"data: " + data + b"\n\n"


class ChunkTemplate:
    """The constant bytes of an OpenAI chunk of one request, cut where index, delta, logprobs and reason go."""

    def __init__(self, id_: str, object_: str, created: int, model: str, with_usage: bool) -> None:
        head = {"id": id_, "object": object_, "created": created, "model": model, "system_fingerprint": None}
        self.head = b"data: " + orjson.dumps(head)[:-1]
        self._choice = self.head + b',"choices":[{"index":'
        self.end = b'}],"usage":null}\n\n' if with_usage else b"}]}\n\n"

    def choice(self, index: int) -> bytes:
        """Everything up to and including `"index":<index>,`."""
        return self._choice + str(index).encode() + b","

    def usage(self, usage: object) -> bytes:
        """The chunk without choices that ends a stream with `include_usage`."""
        return self.head + b',"choices":[],"usage":' + orjson.dumps(usage) + b"}\n\n"

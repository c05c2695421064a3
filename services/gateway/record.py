"""What one HTTP request was, for its log line and its metrics. Filled in by the handler as it learns more."""

from __future__ import annotations

import dataclasses
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MAX_USER_CHARS = 64


@dataclass(slots=True)
class Record:
    """Lives as long as one HTTP request."""

    route: str
    """Pattern of the route, so that metrics stay few."""
    rid: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Minted here; a `rid` in the body replaces it."""
    arrived_s: float = field(default_factory=time.perf_counter)
    status: int = 500
    """Stays 500 when a handler fails on a bug of ours."""
    error: str | None = None
    user: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_ms: float | None = None

    def fields(self) -> dict[str, Any]:
        """Fields of the log line; what does not apply is left out."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "arrived_s"}
        fields["e2e_ms"] = 1000 * (time.perf_counter() - self.arrived_s)
        if self.user is not None:
            fields["user"] = ascii(self.user[:MAX_USER_CHARS])  # a client's text must not break the line
        return {name: value for name, value in fields.items() if value is not None}


RECORD = web.RequestKey("record", Record)


def record_of(request: web.Request) -> Record:
    return request[RECORD]

"""Options of the gateway."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.config import CommonConfig, option
from shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Resolved once in `__main__`, passed down, never changed."""

    common: CommonConfig = field(default_factory=CommonConfig)
    host: str = option("127.0.0.1", help="address to listen on; 0.0.0.0 = every interface", group="http")
    port: int = option(30000, help="port to listen on; 0 = any free one", group="http")
    keepalive_s: float = option(75.0, help="seconds an idle connection is kept open", group="http")
    allow_origin: tuple[str, ...] = option(
        (), help="web origin that browsers may call from (CORS), repeatable; * = any; none by default", group="http"
    )
    api_key: tuple[str, ...] = option(
        (), help="key that clients send as `Authorization: Bearer KEY`, repeatable", group="access"
    )
    api_key_file: str = option("", help="file with one API key a line", group="access", metavar="FILE")
    max_body_bytes: int = option(64 * 1024 * 1024, help="largest request body, images in it included", group="limits")
    max_media_per_request: int = option(64, help="images and videos in one request", group="media")
    shared_memory_dir: str = option(
        "", help="where processes of this host share media and embeddings (default: /dev/shm, else the directory for "
        "temporary files)", group="media", metavar="DIR",
    )  # fmt: skip
    max_inflight_requests: int = option(
        1024, help="generations running at once (every prompt and every choice counts); over it: 429", group="limits"
    )
    max_prompts_per_request: int = option(512, help="prompts in one request", group="limits")
    max_n: int = option(64, help="choices per prompt (n)", group="limits")
    request_timeout_s: float = option(600.0, help="deadline of a generation in seconds", group="limits")
    accept_timeout_s: float = option(
        30.0, help="seconds a tokenizer and a scheduler may take to queue a request", group="limits"
    )
    media_timeout_s: float = option(
        120.0, help="seconds that fetching and encoding the images and videos of a request may take", group="limits"
    )
    max_queued_deltas: int = option(
        4096, help="stream deltas that wait for a slow client before it is dropped", group="limits"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port}: use 0 to 65535")
        for name in ("max_body_bytes", "max_media_per_request", "max_inflight_requests", "max_prompts_per_request",
                     "max_n", "request_timeout_s", "accept_timeout_s", "media_timeout_s", "max_queued_deltas",
                     "keepalive_s"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be positive")

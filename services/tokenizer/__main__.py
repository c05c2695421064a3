"""`python -m services.tokenizer`: one tokenizer on an existing NATS server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.tokenizer.config import TokenizerConfig
from shared.actor import Actor
from shared.process import Drain
from shared.process import main as run_service


async def start(actor: Actor, config: TokenizerConfig) -> Drain:
    from services.tokenizer.encoder import Encoder
    from services.tokenizer.model import load_model
    from services.tokenizer.service import Limits, TokenizerService

    encoder = Encoder(config.encode_threads, config.max_pending_encodes)
    limits = Limits(config.max_streams, config.max_media_per_request, config.media_timeout_s)
    service = TokenizerService(actor, load_model(config), encoder, limits)
    await service.start()
    return service.drain


def main(argv: Sequence[str] | None = None) -> int:
    description = "Chat templates, encoding and incremental detokenization for one model."
    return run_service("tokenizer", TokenizerConfig, description, start, argv)


if __name__ == "__main__":
    sys.exit(main())

"""The logger that aiohttp writes to: bugs with their traceback, malformed HTTP of clients not at all."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError


class _NoClientFaults(logging.Filter):
    """aiohttp answers malformed HTTP with 400 and logs a traceback; whoever sends it could fill the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def server_logger() -> logging.Logger:
    """For `AppRunner(logger=...)`."""
    logger = logging.getLogger("aiohttp.server")
    if not any(isinstance(f, _NoClientFaults) for f in logger.filters):
        logger.addFilter(_NoClientFaults())
    return logger

"""Structured log lines: `time level service event key=value ...`, or one JSON object a line.

`log.info("request done", rid=rid, tokens=n)`: the message names the event, everything variable is a field.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Literal

import orjson


class Log:
    """Logger of one service instance; `bind` gives a child with fixed fields."""

    def __init__(self, logger: logging.Logger, fields: dict[str, Any]) -> None:
        self._logger, self._fields = logger, fields

    def bind(self, **fields: Any) -> Log:
        return Log(self._logger, {**self._fields, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, *, fault: BaseException | None = None, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields, fault)

    def _log(self, level: int, event: str, fields: dict[str, Any], fault: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": {**self._fields, **fields}}, exc_info=fault)


def setup(service: str, level: str = "info", form: Literal["text", "json"] = "text") -> Log:
    """Configure this process's logging on stderr and return the service's log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger = logging.getLogger("rhizome")
    logger.setLevel(level.upper())
    return Log(logger, {"service": service})


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, "fields", {}))
        service = fields.pop("service", record.name)
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        tail = "".join(f" {k}={_shown(v)}" for k, v in fields.items())
        line = f"{stamp} {record.levelname[0]} {service:<12} {record.getMessage()}{tail}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        doc = {"time": record.created, "level": record.levelname.lower(), "event": record.getMessage()}
        doc.update(getattr(record, "fields", {}))
        if record.exc_info:
            doc["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(doc, default=str).decode()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if text and " " not in text else repr(text)

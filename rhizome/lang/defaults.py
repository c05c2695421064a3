"""What applies when nothing is given: the default backend, where runs are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rhizome.lang.backends.base import Backend
from rhizome.lang.errors import LanguageError
from rhizome.lang.recording import Recorder

_backend: Backend | None = None
_record: Recorder | str | Path | None = None


def set_default_backend(backend: Any) -> None:
    """The backend of every program that is run without one: a `Backend`, or a `Runtime` that has one."""
    global _backend
    _backend = None if backend is None else as_backend(backend)


def set_default_record(record: Recorder | str | Path | None) -> None:
    """Where every run is recorded that does not say otherwise; None = nowhere."""
    global _record
    _record = record


def default_record() -> Recorder | str | Path | None:
    return _record


def as_backend(backend: Any = None) -> Backend:
    """The backend that is meant.

    Raises:
        LanguageError: none was given and there is no default.
    """
    backend = _backend if backend is None else getattr(backend, "endpoint", backend)
    if backend is None:
        raise LanguageError("no backend: call set_default_backend(RuntimeEndpoint(url)) or give backend=")
    if not isinstance(backend, Backend):
        raise LanguageError(f"{type(backend).__name__} is no backend")
    return backend

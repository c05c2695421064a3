"""What one asks of a backend beside programs, for a thread."""

from __future__ import annotations

from typing import Any

from rhizome.lang.defaults import as_backend
from rhizome.lang.loops import background_loop, wait_on


def flush_cache(backend: Any = None) -> Any:
    """Empty the server's prefix cache."""
    return wait_on(background_loop(), as_backend(backend).flush_cache())


def get_server_info(backend: Any = None) -> Any:
    """What the server tells about itself."""
    return wait_on(background_loop(), as_backend(backend).get_server_info())

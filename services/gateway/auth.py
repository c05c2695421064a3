"""API keys: `Authorization: Bearer KEY` against the configured ones, in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from shared.errors import ConfigError, Unauthorized


class ApiKeys:
    """The keys that open the gateway; none configured = open to everybody. Immutable."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def load(cls, keys: Iterable[str], path: str) -> ApiKeys:
        """Keys of the command line plus those of a file, one a line; empty lines and # comments are skipped.

        Raises:
            ConfigError: the file cannot be read or holds no key, or a key is empty.
        """
        given = [*keys]
        if path:
            try:
                lines = Path(path).read_text().splitlines()
            except (OSError, UnicodeDecodeError) as fault:
                raise ConfigError(f"--api-key-file {path}: {fault}") from fault
            from_file = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            if not from_file:
                raise ConfigError(f"--api-key-file {path}: no key in it")
            given += from_file
        if not all(given):
            raise ConfigError("--api-key is empty: give a key or leave the flag out")
        return cls(given)

    def check(self, authorization: str | None) -> None:
        """Accept the value of an `Authorization` header.

        Raises:
            Unauthorized: it is missing, of another scheme, or its key is wrong.
        """
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("API key missing: send the header 'Authorization: Bearer KEY'")
        digest = _digest(key.strip())
        if sum([hmac.compare_digest(digest, known) for known in self._digests]) == 0:  # every key, no early exit
            raise Unauthorized("API key is wrong")


def _digest(key: str) -> bytes:
    """Same length for every key, so that comparison time tells nothing about length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

"""The bytes of an image or video, wherever they are. It knows every scheme; the decoder decides what the bytes are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from services.vision.budget import Grow
from services.vision.http_fetch import HttpFetch
from services.vision.local_file import read_allowed
from shared import data_url
from shared.blobs import Blobs
from shared.errors import InvalidRequest

SCHEMES = ("http", "https", "data", "file", "blob")


class Sources:
    """Lives as long as the service."""

    def __init__(self, http: HttpFetch, blobs: Blobs, folders: Sequence[Path], max_bytes: int) -> None:
        self._http, self._blobs, self._max_bytes = http, blobs, max_bytes
        self._folders = [folder.resolve() for folder in folders]

    async def read(self, url: str, grow: Grow) -> bytes:
        """Fetch or read it.

        Args:
            grow: told of its bytes.

        Raises:
            InvalidRequest: it cannot be had from there, or is over the limit.
            Overloaded: `grow` says so.
            Unavailable: it was handed over by reference and has expired.
        """
        scheme = scheme_of(url)
        if scheme in ("http", "https"):
            return await self._http.fetch(url, grow)
        if scheme == "file":
            data = await asyncio.to_thread(read_allowed, url, self._folders, self._max_bytes)
        elif scheme == "blob":
            data = await self._blobs.read(url, self._max_bytes)
        else:
            data = await asyncio.to_thread(data_url.decode, url)
        if len(data) > self._max_bytes:
            raise InvalidRequest(f"media of {len(data):,} bytes is over the limit of {self._max_bytes:,}")
        grow(len(data))
        return data

    async def used(self, url: str) -> None:
        """It is encoded: whoever holds it for us may let it go."""
        if scheme_of(url) == "blob":
            await self._blobs.used(url)


def scheme_of(url: str) -> str:
    """The scheme of a URL.

    Raises:
        InvalidRequest: there is none, or none that is known.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in SCHEMES:
        raise InvalidRequest("give a http, https or data: URL")
    return scheme

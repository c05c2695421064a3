"""Images and videos in a request: large ones leave its body here and travel by reference.

A message holds a few megabytes, an image in a `data:` URL may be more. Its bytes go to where vision finds them: shared
memory when all vision instances see the same as this gateway, else the object store of the bus. Small ones and
addresses stay as they are. Knows no routes; they call `by_reference` for every image and video of a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from shared import data_url
from shared.blobs import Blobs
from shared.errors import InvalidRequest

INLINE_CHARS = 64 * 1024
"""Longest `data:` URL that stays in the message."""
MAX_URL_CHARS = 8192
"""Longest address of any other kind."""
SCHEMES = ("http", "https", "data", "file")


class MediaReferences:
    """Lives as long as the service."""

    def __init__(self, open_blobs: Callable[[], Blobs], memories: Callable[[], Sequence[str]]) -> None:
        """
        Args:
            open_blobs: called once, when the first large image comes.
            memories: the `ServiceFacts.memory` of each vision instance.
        """
        self._open_blobs, self._memories = open_blobs, memories
        self._blobs: Blobs | None = None

    async def by_reference(self, url: str, param: str) -> str:
        """The URL to put into the message instead of a client's.

        Args:
            param: the request's field, for errors.

        Raises:
            InvalidRequest: no URL of a kind that is fetched, or not valid base64.
            Overloaded: there is no room for it at the moment.
            Unavailable: it cannot be kept.
        """
        scheme = url[:8].partition(":")[0].lower()
        if ":" not in url[:8] or scheme not in SCHEMES:
            raise InvalidRequest("give a http, https or data: URL", param=param)
        if scheme != "data":
            if len(url) > MAX_URL_CHARS:
                message = f"a URL of {len(url):,} characters is over the limit of {MAX_URL_CHARS:,}"
                raise InvalidRequest(message, param=param)
            return url
        if len(url) <= INLINE_CHARS:
            data_url.decode(url, param)
            return url
        data = await asyncio.to_thread(data_url.decode, url, param)
        if self._blobs is None:
            self._blobs = self._open_blobs()
        memories = self._memories()
        return await self._blobs.put(data, nearby=all(memory == self._blobs.host for memory in memories))

    async def sweep(self) -> None:
        """Remove expired blobs; call now and then."""
        if self._blobs is not None:
            await self._blobs.sweep()


def check_count(count: int, limit: int, param: str) -> None:
    """Refuse a request with too many images and videos.

    Raises:
        InvalidRequest: more than `limit`.
    """
    if count > limit:
        raise InvalidRequest(
            f"{count} images and videos in one request are over the limit of {limit}: send fewer, or raise "
            "--max-media-per-request",
            param=param,
        )

"""Images and videos in a request: large ones leave its body here and travel by reference.

A message holds a few megabytes, an image in a `data:` URL may be more. Its bytes go to where vision finds them: shared
memory when all vision instances see the same as this gateway, else the object store of the bus. Small ones and
addresses stay as they are. Knows no routes; they call `Core.by_reference` before a request goes on the bus.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from shared import data_url
from shared import messages as m
from shared.blobs import Blobs
from shared.errors import InvalidRequest

INLINE_CHARS = 64 * 1024
"""Longest `data:` URL that stays in the message."""
MAX_URL_CHARS = 8192
"""Longest address of any other kind."""
PARTS = ("image_url", "video_url")
"""Types of content parts that are media."""
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


async def hand_over(
    requests: list[m.GenerateRequest], references: MediaReferences, limit: int
) -> list[m.GenerateRequest]:
    """Requests whose large images and videos are handed over by reference; those of one prompt once for all choices.

    Args:
        limit: images and videos in one prompt.

    Raises:
        RhizomeError: see `MediaReferences.by_reference`; or InvalidRequest, there are too many.
    """
    chats: dict[int, m.ChatInput] = {}
    lists: dict[int, list[m.MediaSource]] = {}
    for request in requests:
        if request.chat is not None and id(request.chat) not in chats:
            chats[id(request.chat)] = await _chat(request.chat, references, limit)
        if request.media and id(request.media) not in lists:
            _check_count(len(request.media), limit, request.media[-1].param)
            lists[id(request.media)] = [
                dataclasses.replace(source, url=await references.by_reference(source.url, source.param))
                for source in request.media
            ]
    return [
        dataclasses.replace(
            request,
            chat=None if request.chat is None else chats[id(request.chat)],
            media=lists[id(request.media)] if request.media else None,
        )
        for request in requests
    ]


def has_media(chat: m.ChatInput) -> bool:
    """Whether a conversation has images or videos."""
    contents = (message.get("content") for message in chat.messages)
    return any(part["type"] in PARTS for content in contents if isinstance(content, list) for part in content)


async def _chat(chat: m.ChatInput, references: MediaReferences, limit: int) -> m.ChatInput:
    messages, count = [], 0
    for i, message in enumerate(chat.messages):
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for j, part in enumerate(content):
                if part["type"] in PARTS:
                    count += 1
                    path = f"messages[{i}].content[{j}].{part['type']}"
                    _check_count(count, limit, path)
                    part = await _part(part, path, references)
                parts.append(part)
            message = {**message, "content": parts}
        messages.append(message)
    return dataclasses.replace(chat, messages=messages) if count else chat


async def _part(part: dict[str, Any], path: str, references: MediaReferences) -> dict[str, Any]:
    name = part["type"]
    given = {"url": part[name]} if isinstance(part[name], str) else part[name]
    return {**part, name: {**given, "url": await references.by_reference(given["url"], f"{path}.url")}}


def _check_count(count: int, limit: int, param: str) -> None:
    if count > limit:
        raise InvalidRequest(
            f"{count} images and videos in one request are over the limit of {limit}: send fewer, or raise "
            "--max-media-per-request",
            param=param,
        )

"""Where the images and videos of a request come from, in the order of its prompt. Nothing is fetched here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

from shared import messages as m
from shared.errors import InvalidRequest
from shared.messages.embedding import Detail, MediaKind

PARTS: dict[str, MediaKind] = {"image_url": "image", "video_url": "video"}
"""Types of content parts that are media."""
SCHEMES = ("http:", "https:", "data:", "file:", "blob:")
MAX_FRAMES = 4096


def sources_of(request: m.GenerateRequest) -> list[m.MediaSource]:
    """The images and videos of a request.

    Raises:
        InvalidRequest: naming the part that is wrong.
    """
    if request.chat is None:
        media = request.media or []
        for source in media:
            _check_url(source.url, source.param or "media")
        return media
    return list(_in_messages(request.chat.messages))


def media_kind(part: Any) -> MediaKind | None:
    """What a content part is as media; None = it is something else, or nothing that a part can be."""
    given = part.get("type") if isinstance(part, dict) else None
    return PARTS.get(given) if isinstance(given, str) else None


def _in_messages(messages: list[dict[str, Any]]) -> Iterator[m.MediaSource]:
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if (kind := media_kind(part)) is not None:
                yield _source(part, kind, f"messages[{i}].content[{j}]")


def _source(part: dict[str, Any], kind: MediaKind, path: str) -> m.MediaSource:
    field = part["type"]
    given = part.get(field)
    given = {"url": given} if isinstance(given, str) else given
    if not isinstance(given, dict) or not isinstance(given.get("url"), str):
        raise InvalidRequest(f"{path}.{field} must be an object with a url", param=f"{path}.{field}")
    path = f"{path}.{field}.url"
    _check_url(given["url"], path)
    detail: Any = given.get("detail") or "auto"
    if detail not in get_args(Detail):
        where = path.removesuffix("url") + "detail"
        raise InvalidRequest(f"detail must be auto, low or high, got {detail!r}", param=where)
    return m.MediaSource(
        given["url"], kind, detail, path, _positive(given, "fps", path), _whole(given, "max_frames", path)
    )


def _check_url(url: str, param: str) -> None:
    if not url.lower().startswith(SCHEMES):
        raise InvalidRequest(f"{param} must be an http(s) or data URL, got {url[:40]!r}", param=param)


def _positive(given: dict[str, Any], name: str, path: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise InvalidRequest(f"{name} must be a positive number, got {value!r}", param=path.removesuffix("url") + name)
    return float(value)


def _whole(given: dict[str, Any], name: str, path: str) -> int | None:
    value = _positive(given, name, path)
    if value is not None and (value != int(value) or value > MAX_FRAMES):
        param = path.removesuffix("url") + name
        raise InvalidRequest(f"{name} must be a whole number up to {MAX_FRAMES}, got {value!r}", param=param)
    return None if value is None else int(value)

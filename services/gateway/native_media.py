"""`image_data` and `video_data` of /generate: SGLang's ways of giving images to one prompt or to many."""

from __future__ import annotations

from shared import messages as m
from shared.errors import InvalidRequest
from shared.messages.embedding import MediaKind

Given = str | list[str | list[str]] | None
SCHEMES = ("http:", "https:", "data:", "file:")
_TYPES: dict[MediaKind, str] = {"image": "image/x-unknown", "video": "video/x-unknown"}


def native_media(images: Given, videos: Given, count: int, *, batch: bool) -> list[list[m.MediaSource]]:
    """The images and videos of each of `count` prompts, images first.

    Raises:
        InvalidRequest: there are as many lists as prompts in none of the ways to read them.
    """
    image_lists = _per_prompt(images, "image", "image_data", count, batch=batch)
    video_lists = _per_prompt(videos, "video", "video_data", count, batch=batch)
    return [[*a, *b] for a, b in zip(image_lists, video_lists, strict=True)]


def _per_prompt(given: Given, kind: MediaKind, param: str, count: int, *, batch: bool) -> list[list[m.MediaSource]]:
    if given is None or given == []:
        return [[] for _ in range(count)]
    if isinstance(given, str):
        return [[_source(given, kind, param)] for _ in range(count)]
    if not batch:
        urls = [url for url in given if isinstance(url, str)]
        if len(urls) < len(given):
            raise InvalidRequest(f"{param} of one prompt is a URL or a list of them, not a list of lists", param=param)
        return [[_source(url, kind, f"{param}[{i}]") for i, url in enumerate(urls)]]
    if len(given) != count:
        raise InvalidRequest(f"{param} has {len(given)} entries for {count} prompts", param=param)
    return [
        [_source(url, kind, f"{param}[{i}]") for url in ([item] if isinstance(item, str) else item)]
        for i, item in enumerate(given)
    ]


def _source(given: str, kind: MediaKind, param: str) -> m.MediaSource:
    """A URL as it is; anything else is base64."""
    is_url = given.lower().startswith(SCHEMES)
    return m.MediaSource(given if is_url else f"data:{_TYPES[kind]};base64,{given}", kind, param=param)

"""OpenAI chat messages in the form that a model's template expects.

Contents: parts become one string (joined by newlines) for templates that know only strings, strings become one text
part for templates that know only parts, null becomes "". Images and videos become parts without their sources, or the
words that stand for them where the template does not show such parts. Tool-call arguments, a JSON string in the API,
become an object. The sender's message is never changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.tokenizer.media.sources import PARTS, media_kind
from shared.errors import InvalidRequest
from shared.messages.embedding import MediaKind

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Put behind the final content; its trailing space tells whether the template trims."""


@dataclass(frozen=True, slots=True)
class ContentForm:
    """What a template takes as content."""

    keep_parts: bool
    """Lists of parts, else one string"""
    wrap_strings: bool
    """Strings become a list of one part"""
    media_texts: Mapping[MediaKind, str] = field(default_factory=dict)
    """Kinds of media that the model takes, and what stands for one in a text"""
    media_parts: bool = False
    """{"type": "image"} is shown as what stands for an image"""


def prepare(messages: list[dict[str, Any]], form: ContentForm) -> list[dict[str, Any]]:
    """Copies of the messages, ready for the template.

    Raises:
        InvalidRequest: a content is neither string, null nor a list of parts that the model takes.
    """
    out = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        content = _content(message.get("content"), f"{path}.content", form)
        ready = {**message, "content": content}
        if ready.get("tool_calls"):
            ready["tool_calls"] = _tool_calls(ready["tool_calls"], f"{path}.tool_calls")
        else:
            ready.pop("tool_calls", None)  # null or empty: templates only ask whether the field is there
        out.append(ready)
    return out


def mark_continuation(messages: list[dict[str, Any]]) -> str:
    """Put the tag behind the last text of the last message (prepared, so it may be changed) and return that text.

    Raises:
        InvalidRequest: there is no message or no text to continue.
    """
    last = messages[-1] if messages else {}
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + CONTINUE_TAG
        return content
    for part in reversed(content or []):
        if "text" not in part:
            break
        text: str = part["text"]
        part["text"] = text + CONTINUE_TAG
        return text
    raise InvalidRequest("continue_final_message: the last message has no text to continue", param="messages")


def text_size(value: Any, enough: int) -> int:
    """Characters and elements of nested data, counted no further than to `enough`: where should it be handled?"""
    size, rest = 0, [value]
    while rest and size <= enough:
        item = rest.pop()
        size += 1
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            rest.extend(item.values())
        elif isinstance(item, list):
            rest.extend(item)
    return size


def _content(content: Any, path: str, form: ContentForm) -> str | list[dict[str, Any]]:
    if content is None:
        content = ""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if form.wrap_strings else content
    if not isinstance(content, list):
        raise InvalidRequest(f"{path} must be a string or an array of parts", param=path)
    parts = [_part(part, f"{path}[{j}]", form) for j, part in enumerate(content)]
    return parts if form.keep_parts else "\n".join(part["text"] for part in parts)


def _part(part: Any, path: str, form: ContentForm) -> dict[str, Any]:
    given, kind = part.get("type") if isinstance(part, dict) else None, media_kind(part)
    if kind is not None and kind in form.media_texts:
        if form.keep_parts and form.media_parts:
            return {"type": kind}
        return {"type": "text", "text": form.media_texts[kind]}
    if given != "text":
        reads = "text, " + " and ".join(f"{kind}s" for kind in form.media_texts) if form.media_texts else "text only"
        kinds = ["text", *(name for name, kind in PARTS.items() if kind in form.media_texts)]
        raise InvalidRequest(
            f"{path} must be a part of type {' or '.join(map(repr, kinds))}, got {given!r}: this model reads {reads}",
            param=path,
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{path}.text must be a string", param=f"{path}.text")
    return {"type": "text", "text": text}


def _tool_calls(calls: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequest(f"{path} must be an array of objects", param=path)
    out = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict):
            call = {**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}
        out.append(call)
    return out


def _arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments  # what a model once wrote need not be JSON; the template prints it as it is
    return value if isinstance(value, dict) else arguments

"""OpenAI chat messages in the form that a model's template expects.

Contents: parts become one string (joined by newlines) for templates that know only strings, strings become one text
part for templates that know only parts, null becomes "". Tool-call arguments, a JSON string in the API, become an
object. The sender's message is never changed in place.
"""

from __future__ import annotations

from typing import Any

import orjson

from shared.errors import InvalidRequest

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Put behind the final content; its trailing space tells whether the template trims."""


def prepare(messages: list[dict[str, Any]], *, keep_parts: bool, wrap_strings: bool) -> list[dict[str, Any]]:
    """Copies of the messages, ready for the template.

    Raises:
        InvalidRequest: a content is neither string, null nor a list of text parts.
    """
    out = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        content = _content(message.get("content"), f"{path}.content", keep_parts=keep_parts, wrap_strings=wrap_strings)
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


def _content(content: Any, path: str, *, keep_parts: bool, wrap_strings: bool) -> str | list[dict[str, Any]]:
    if content is None:
        content = ""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if wrap_strings else content
    if not isinstance(content, list):
        raise InvalidRequest(f"{path} must be a string or an array of parts", param=path)
    parts = [{"type": "text", "text": _part_text(part, f"{path}[{j}]")} for j, part in enumerate(content)]
    return parts if keep_parts else "\n".join(part["text"] for part in parts)


def _part_text(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise InvalidRequest(
            f"{path} must be a part of type 'text', got {kind!r}: this model reads text only", param=path
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{path}.text must be a string", param=f"{path}.text")
    return text


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

"""A server's own chat template as prefixes and suffixes, found by rendering a few conversations.

The result is checked on a conversation of five turns: a template that is no plain concatenation of turns is not
taken, and the caller falls back on the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from rhizome.lang.chat_template import ChatTemplate

Render = Callable[[list[dict[str, Any]]], Awaitable[str]]
_PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_S, _U, _A, _U2, _A2 = "Zq0 rule.", "Zq1 ask?", "Zq2 say.", "Zq3 ask?", "Zq4 say."


async def probe_template(render: Render, name: str) -> ChatTemplate | None:
    """The template, or None when it cannot be told from texts.

    Args:
        render: text of a conversation, without the opening of a next turn and without a beginning-of-text token; empty
            where the server refuses it.
    """
    system = {"role": "system", "content": _S}
    user, answer = {"role": "user", "content": _U}, {"role": "assistant", "content": _A}
    alone = await render([user])
    turns = await render([user, answer])
    longer = await render([user, answer, {"role": "user", "content": _U2}, {"role": "assistant", "content": _A2}])
    if not (turns.startswith(alone) and longer.startswith(turns) and _U in alone and _A in turns and _U2 in longer):
        return None
    opening, user_after = alone.split(_U, 1)
    assistant_before, assistant_after = turns[len(alone) :].split(_A, 1)
    user_before = longer[len(turns) :].split(_U2, 1)[0]
    if not opening.endswith(user_before):
        return None
    first = opening[: len(opening) - len(user_before)]
    roles = {"user": (user_before, user_after), "assistant": (assistant_before, assistant_after)}
    with_system = await render([system, user])
    system_before, found, rest = with_system.partition(_S)
    if not found or not rest.endswith(alone[len(first) :]):
        return None
    system_after = rest[: len(rest) - len(alone) + len(first)]
    default: str | None = None
    if (
        first.startswith(system_before)
        and first.endswith(system_after)
        and len(first) > len(system_before + system_after)
    ):
        default = first[len(system_before) : len(first) - len(system_after)]
        first = ""  # with a default system text the first turn is always the system's
    elif system_before.startswith(first):
        system_before = system_before[len(first) :]
    else:
        return None
    roles["system"] = (system_before, system_after)
    template = ChatTemplate(name, roles, default, first_prefix=first)
    if not await _holds(template, render):
        return None
    image_token = await _image_token(template, render)
    return dataclasses.replace(template, image_token=image_token) if image_token else template


async def _holds(template: ChatTemplate, render: Render) -> bool:
    talk = [("system", _S), ("user", _U), ("assistant", _A), ("user", _U2), ("assistant", _A2)]
    for turns in (talk, talk[1:]):
        messages = [{"role": role, "content": text} for role, text in turns]
        if compose(template, messages) != await render(messages):
            return False
    return True


async def _image_token(template: ChatTemplate, render: Render) -> str:
    """What stands for a picture before a user's text; "" where the model takes none."""
    parts = [{"type": "image_url", "image_url": {"url": _PIXEL}}, {"type": "text", "text": _U}]
    text = await render([{"role": "user", "content": parts}])
    before, after = compose(template, [{"role": "user", "content": _U}]).split(_U, 1)
    if not (text.startswith(before) and text.endswith(_U + after)):
        return ""
    return text[len(before) : len(text) - len(_U + after)]


def compose(template: ChatTemplate, messages: list[dict[str, str]]) -> str:
    """The text that the language would make of these turns."""
    if messages[0]["role"] != "system" and template.default_system_prompt:
        messages = [{"role": "system", "content": template.default_system_prompt}, *messages]
    text = ""
    for i, message in enumerate(messages):
        before, after = template.get_prefix_and_suffix(message["role"], messages[:i])
        text += before + message["content"] + after
    return text

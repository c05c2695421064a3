"""A prompt as chat messages, and a chat choice as text with its facts; plain JSON both ways."""

from __future__ import annotations

from typing import Any

from rhizome.lang.conversation import Message, Prompt
from rhizome.lang.errors import Unsupported


def as_messages(prompt: Prompt, *, prefill: bool = False) -> list[Message]:
    """Messages for a chat API that is to give the assistant's next text.

    Args:
        prefill: the API goes on with a last message of the assistant.

    Raises:
        Unsupported: the text does not end where an assistant speaks.
    """
    if prompt.role is None:
        if prompt.messages:
            raise Unsupported("a chat model generates in the assistant's turn: s += assistant(gen(...))")
        if prompt.images:
            raise Unsupported("pictures for a chat model belong into a user turn: s += user(image(...) + ...)")
        return [{"role": "user", "content": prompt.text}]
    if prompt.role != "assistant":
        raise Unsupported(f"a chat model does not generate in the {prompt.role} turn")
    if not prompt.turn_text:
        return list(prompt.messages)
    if not prefill:
        raise Unsupported(
            "this chat API cannot go on with a begun answer: put gen first in the assistant's turn, or use "
            "@function(num_api_spec_tokens=...)"
        )
    return [*prompt.messages, {"role": "assistant", "content": prompt.turn_text}]


def message_of(choice: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Text and meta information of `choices[i]` of a chat completion."""
    message = choice["message"]
    reason = choice.get("finish_reason") or "stop"
    meta: dict[str, Any] = {"finish_reason": {"type": reason}}
    if message.get("tool_calls"):
        meta["tool_calls"] = message["tool_calls"]
    if message.get("reasoning_content"):
        meta["reasoning_content"] = message["reasoning_content"]
    return message.get("content") or "", meta

"""Fields that other servers know, that would change the result, and that this one does not have.

Ignoring them would give a wrong answer with status 200, so they are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.errors import InvalidRequest

Neutral = Mapping[str, tuple[Any, ...]]
"""Field -> values that ask for nothing; None, false, "" and [] always do."""

_EVERYWHERE: Neutral = {
    "guided_whitespace_pattern": (),
    "length_penalty": (1, 1.0),
    "use_beam_search": (),
    "lora_path": (),
    "stop_regex": (),
    "custom_logit_processor": (),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
}
CHAT: Neutral = {
    **_EVERYWHERE,
    "functions": (),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"], ["image"], ["multi-images"], ["video"]),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "best_of": (1,),
    "echo": (),
    "suffix": (),
}
COMPLETIONS: Neutral = {**_EVERYWHERE, "suffix": ()}


def refuse(body: Mapping[str, Any], table: Neutral) -> None:
    """Check a decoded body before it is parsed.

    Raises:
        InvalidRequest: naming the first field that is not supported.
    """
    structured = body.get("structured_outputs")
    if isinstance(structured, dict) and not is_empty(structured.get("whitespace_pattern")):
        param = "structured_outputs.whitespace_pattern"
        raise InvalidRequest(f"{param} is not supported by this server: see max_whitespace", param=param)
    for name in table.keys() & body.keys():
        value = body[name]
        if not is_empty(value) and value not in table[name]:
            raise InvalidRequest(f"{name} is not supported by this server: leave it out", param=name)


def is_empty(value: Any) -> bool:
    """True for the ways of writing "not given"."""
    return value is None or value is False or value == "" or value == []

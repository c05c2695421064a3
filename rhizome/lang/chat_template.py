"""What stands before and after each role's text, for backends that take one text.

A Rhizome server tells its own template (`template_probe`); this table serves other servers, by the model's name.
Source of the table: the models' published templates, as in SGLang's python/sglang/lang/chat_template.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rhizome.lang.errors import LanguageError

_LLAMA2 = "llama2"


@dataclass(frozen=True)
class ChatTemplate:
    """Immutable. `style` "llama2" puts the system text inside the first user turn."""

    name: str
    role_prefix_and_suffix: dict[str, tuple[str, str]] = field(default_factory=dict)
    default_system_prompt: str | None = None
    stop_str: tuple[str, ...] = ()
    image_token: str = "<image>"
    style: str = "plain"
    first_prefix: str = ""
    """Before the first turn of all."""

    def get_prefix_and_suffix(self, role: str, messages: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """Texts around the next turn, given the turns before it."""
        prefix, suffix = self.role_prefix_and_suffix.get(role, ("", ""))
        if self.style == _LLAMA2:
            if role == "system" and not messages:
                user_prefix, _ = self.role_prefix_and_suffix.get("user", ("", ""))
                prefix = user_prefix + prefix
            elif role == "user" and len(messages) == 1 and messages[0]["role"] == "system":
                prefix = ""
        return (prefix if messages else self.first_prefix + prefix), suffix


def _same(
    before: str, after: str, roles: Sequence[str] = ("system", "user", "assistant")
) -> dict[str, tuple[str, str]]:
    return {role: (before.format(role=role), after) for role in roles}


_CHATML = _same("<|im_start|>{role}\n", "<|im_end|>\n")
_LLAMA3 = _same("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")
_DEEPSEEK = {"system": ("", ""), "user": ("<｜User｜>", ""), "assistant": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>")}
TEMPLATES = {
    t.name: t
    for t in (
        ChatTemplate("default", {"system": ("SYSTEM:", "\n"), "user": ("USER:", "\n"),
                                 "assistant": ("ASSISTANT:", "\n")}),
        ChatTemplate("messages"),
        ChatTemplate("chatml", _CHATML, stop_str=("<|im_end|>",)),
        ChatTemplate("qwen", _CHATML, "You are a helpful assistant.", ("<|im_end|>",)),
        ChatTemplate("qwen2-vl", _CHATML, "You are a helpful assistant.", ("<|im_end|>",),
                     "<|vision_start|><|image_pad|><|vision_end|>"),
        ChatTemplate("chatml-llava", _CHATML, "You are a helpful assistant.", ("<|im_end|>",), "<image>\n"),
        ChatTemplate("llama-2-chat", {"system": ("<<SYS>>\n", "\n<</SYS>>\n\n"), "user": ("[INST] ", " [/INST]"),
                                      "assistant": ("", " </s><s>")}, style=_LLAMA2),
        ChatTemplate("llama-3-instruct", _LLAMA3, stop_str=("<|eot_id|>",), image_token="<|image|>"),
        ChatTemplate("llama-4", _same("<|header_start|>{role}<|header_end|>\n\n", "<|eot|>"), stop_str=("<|eot|>",),
                     image_token="<|image|>"),
        ChatTemplate("gemma-it", {"system": ("", ""), "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
                                  "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n")}),
        ChatTemplate("vicuna_v1.1", {"system": ("", " "), "user": ("USER:", " "), "assistant": ("ASSISTANT:", "</s>")},
                     image_token=" <image>\n"),
        ChatTemplate("deepseek-v3", _DEEPSEEK, stop_str=("<｜end▁of▁sentence｜>",)),
        ChatTemplate("granite-3-instruct", _same("<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>"),
                     stop_str=("<|end_of_text|>",)),
    )
}  # fmt: skip
_BY_PART = (
    (("qwen", "vl"), "qwen2-vl"), (("qwen",), "qwen"), (("smollm",), "chatml"), (("yi", "chat"), "chatml"),
    (("llama-4",), "llama-4"), (("llama-3", "instruct"), "llama-3-instruct"), (("llama-2", "chat"), "llama-2-chat"),
    (("mistral", "instruct"), "llama-2-chat"), (("mixtral", "instruct"), "llama-2-chat"), (("gemma", "it"), "gemma-it"),
    (("vicuna",), "vicuna_v1.1"), (("deepseek-v3",), "deepseek-v3"), (("deepseek-r1",), "deepseek-v3"),
    (("granite",), "granite-3-instruct"),
)  # fmt: skip


def get_chat_template(name: str) -> ChatTemplate:
    """Raises:
    LanguageError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise LanguageError(f"no chat template {name!r}: use one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """The template of a model, by its name; "default" for names that tell nothing."""
    low = model_path.lower()
    for parts, name in _BY_PART:
        if all(part in low for part in parts):
            return TEMPLATES[name]
    return TEMPLATES["default"]

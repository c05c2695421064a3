"""One chat template: sandboxed, bounded, with the extras that templates of published models rely on.

Rendering gives the same text as transformers' `apply_chat_template`. Templates come from model authors and
operators; messages come from clients and are data only. Called from worker threads: a compiled template is shared,
each rendering has its own context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.tokenizer.chat_messages import CONTINUE_TAG, ContentForm, mark_continuation, prepare
from services.tokenizer.media.placeholders import Placeholders
from shared.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from shared.messages import ChatInput

OWN_NAMES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
_PROBE = "probe-4711"
# What a template can raise: its own errors, and Python's on data it did not expect.
_FAULTS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


class ChatTemplate:
    """Compiled once, immutable."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], max_chars: int, placeholders: Placeholders | None = None
    ) -> None:
        """Args:
        source: the jinja text.
        special_tokens: bos_token, eos_token, ... as the template may print them.
        max_chars: longest output.
        placeholders: of images and videos, where the model takes them.

        Raises:
            ConfigError: the template does not compile.
        """
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as fault:
            raise ConfigError(f"the chat template does not compile: {fault}") from fault
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        takes_strings, takes_parts = self._shows(_PROBE), self._shows([{"type": "text", "text": _PROBE}])
        self._takes_strings = takes_strings
        self._form = ContentForm(
            keep_parts=takes_parts,
            wrap_strings=takes_parts and not takes_strings,
            media_texts={} if placeholders is None else placeholders.texts,
            media_parts=placeholders is not None and self._shows_media(placeholders),
        )
        self.takes_tools = self._shows_tools()
        """Whether it tells the model of tools."""

    def render(self, chat: ChatInput) -> str:
        """The prompt of a conversation.

        Raises:
            InvalidRequest: the template refused it, with the template's own message.
            ContextLengthExceeded: longer than `max_chars`.
        """
        if own := OWN_NAMES & chat.template_kwargs.keys():
            raise InvalidRequest(f"template arguments cannot set {sorted(own)}", param="chat_template_kwargs")
        messages = prepare(chat.messages, self._form)
        final = mark_continuation(messages) if chat.continue_final_message else ""
        try:
            text = self._render(chat, messages)
        except _FAULTS as fault:
            raise InvalidRequest(f"the chat template refused the messages: {fault}", param="messages") from fault
        return _cut_continuation(text, final) if chat.continue_final_message else text

    def _render(self, chat: ChatInput, messages: list[dict[str, Any]]) -> str:
        context = {
            **self._special_tokens, **chat.template_kwargs, "messages": messages, "tools": chat.tools or None,
            "documents": None, "add_generation_prompt": chat.add_generation_prompt and not chat.continue_final_message,
        }  # fmt: skip
        parts, size = [], 0
        for part in self._template.generate(context):
            size += len(part)
            if size > self._max_chars:
                raise ContextLengthExceeded(
                    f"the rendered prompt has over {self._max_chars:,} characters: shorten it or raise"
                    " --max-prompt-chars",
                    param="messages",
                )
            parts.append(part)
        return "".join(parts)

    def _shows_tools(self) -> bool:
        parameters = {"type": "object", "properties": {}}
        tool = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": parameters}}
        content = "x" if self._takes_strings else [{"type": "text", "text": "x"}]
        chat = ChatInput([{"role": "user", "content": content}], tools=[tool])
        try:
            return _PROBE in self._render(chat, chat.messages)
        except (*_FAULTS, ContextLengthExceeded):
            return False

    def _shows_media(self, placeholders: Placeholders) -> bool:
        """Whether each kind of media comes out as one of its placeholders."""
        for kind, mark in placeholders.marks.items():
            content = [{"type": "text", "text": _PROBE}, {"type": kind}, {"type": "text", "text": _PROBE}]
            chat = ChatInput([{"role": "user", "content": content}])
            try:
                text = self._render(chat, chat.messages)
            except (*_FAULTS, ContextLengthExceeded):
                return False
            if text.count(mark) != 1:
                return False
        return True

    def _shows(self, content: Any) -> bool:
        """Whether a user message with this content comes out as its text and nothing else."""
        chat = ChatInput([{"role": "user", "content": content}])
        try:
            text = self._render(chat, chat.messages)
        except (*_FAULTS, ContextLengthExceeded):
            return False
        return _PROBE in text and "'text'" not in text and '"text"' not in text


def _cut_continuation(text: str, final: str) -> str:
    """Everything up to the end of the final message's content."""
    tag = CONTINUE_TAG.strip()
    if tag not in text or final.strip() not in text:
        raise InvalidRequest(
            "continue_final_message: the chat template does not show the final message as it is, so it cannot be"
            " continued",
            param="continue_final_message",
        )
    at = text.rindex(tag)
    kept = text[:at]
    # A template that trims contents has eaten the tag's trailing space; then it would have trimmed the content too.
    return kept if text.startswith(CONTINUE_TAG, at) else kept.rstrip()


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks answers for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    return env


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    """jinja's own filter escapes HTML characters, which a prompt must not have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
